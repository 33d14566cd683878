"""Functions that are called once a module has been imported, which they do not import themselves."""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


# Modules of other packages are not watched: a function is called when the outermost import of these has finished
_PACKAGES = frozenset({"transformers", "modeling_detr"})


def call_after_import(module: str, function: Callable[[], None]) -> None:
    """Calls `function` once `module` has been imported, at once if it has been already.

    The function may import what it likes: it is called when no module of Transformers or of this package is half
    imported any more, before the import statement that led to `module` returns. If two threads import, it can be
    called twice.

    Args:
        module: Name of a module of Transformers.
        function: An exception that it raises fails the import.
    """
    if module in sys.modules:
        function()
        return
    _finder.pending[module] = function
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _WatchingFinder:
    """Finds modules as Python's other finders do, with a loader that reports the end of an import."""

    def __init__(self) -> None:
        self.pending: dict[str, Callable[[], None]] = {}
        self._thread = threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] not in _PACKAGES:
            return None
        for finder in sys.meta_path:
            find_spec = getattr(finder, "find_spec", None)
            spec: ModuleSpec | None = find_spec(name, path, target) if find_spec and finder is not self else None
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _WatchingLoader(spec.loader, self.importing)
                return spec
        return None

    @contextmanager
    def importing(self) -> Iterator[None]:
        """A module is imported; at the end of the outermost, the functions of what has been imported are called."""
        depth = getattr(self._thread, "depth", 0)
        self._thread.depth = depth + 1
        try:
            yield
            while depth == 0 and (imported := self.pending.keys() & sys.modules.keys()):
                for module in sorted(imported):
                    self.pending[module]()
                    self.pending.pop(module, None)
        finally:
            self._thread.depth = depth
        if not self.pending and self in sys.meta_path:
            sys.meta_path.remove(self)


class _WatchingLoader(Loader):
    """Runs a module's own loader, like `importlib.util.LazyLoader`, between the two ends of `importing`."""

    def __init__(self, loader: Any, importing: Callable[[], Any]) -> None:
        self._loader = loader
        self._importing = importing

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # `python -m` asks for the code, importlib.resources for a reader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        with self._importing():
            self._loader.exec_module(module)


_finder = _WatchingFinder()
