"""Adds the recipes of `configs/` to the wheel, as `modeling_detr/configs/`. Everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithRecipes(build_py):
    """Builds the package with its recipes; an editable install reads them where they are."""

    def run(self) -> None:
        """Copies the modules, then the recipes."""
        super().run()
        if not self.editable_mode:
            for recipe, target in self._recipes().items():
                self.mkpath(str(target.parent))
                self.copy_file(str(recipe), str(target), preserve_mode=False)

    def get_source_files(self) -> list[str]:
        """The files that a source distribution needs."""
        return [*super().get_source_files(), *map(str, self._recipes())]

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """The files that the build writes."""
        return [*super().get_outputs(include_bytecode), *map(str, self._recipes().values())]

    def _recipes(self) -> dict[Path, Path]:
        return {path: Path(self.build_lib, "modeling_detr", path) for path in sorted(Path("configs").rglob("*.yaml"))}


setup(cmdclass={"build_py": BuildWithRecipes})
