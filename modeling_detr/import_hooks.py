"""Functions that are called once a module has been imported, which they do not import themselves."""

import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class ImportWatcher:
    """Watches the imports of some packages.

    While functions wait for their module, it is one of Python's finders (`sys.meta_path`): it finds modules as the
    others do, and gives them a loader that reports the end of an import.

    Attributes:
        packages: Names of the packages whose imports are watched.
    """

    def __init__(self, packages: Collection[str]) -> None:
        self.packages = packages
        self._waiting: dict[str, Callable[[], None]] = {}
        self._thread = threading.local()

    def call_after_import(self, module: str, function: Callable[[], None]) -> None:
        """Calls `function` once `module` has been imported, at once if it has been already.

        The function may import what it likes: it is called when no module of the watched packages is half imported any
        more, before the import statement that led to `module` returns. If two threads import, it can be called twice.

        Args:
            module: Name of a module of the watched packages.
            function: An exception that it raises fails the import.
        """
        if module in sys.modules:
            function()
            return
        self._waiting[module] = function
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Finds a module; see `importlib.abc.MetaPathFinder`."""
        if name.partition(".")[0] not in self.packages:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec and finder is not self else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _WatchedLoader(spec.loader, self)
                return spec
        return None

    @contextmanager
    def importing(self) -> Iterator[None]:
        """A module is being imported. At the end of the outermost, functions whose module has been are called."""
        depth = getattr(self._thread, "depth", 0)
        self._thread.depth = depth + 1
        try:
            yield
            while depth == 0 and (imported := self._waiting.keys() & sys.modules.keys()):
                for module in sorted(imported):
                    self._waiting[module]()
                    self._waiting.pop(module, None)
        finally:
            self._thread.depth = depth
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _WatchedLoader(Loader):
    """Calls a module's own loader, which the module keeps, as `importlib.util.LazyLoader` does."""

    def __init__(self, loader: Any, watcher: ImportWatcher) -> None:
        self._loader = loader
        self._watcher = watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # `python -m` asks for the code, importlib.resources for a reader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with self._watcher.importing():
            self._loader.exec_module(module)
