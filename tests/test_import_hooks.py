"""Functions called after an import: when nothing is half imported, and before the import statement returns."""

import importlib
import sys
import threading

import pytest

from modeling_detr.import_hooks import ImportWatcher


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package whose module `outer` imports `inner`, then defines `value`."""
    folder = tmp_path / "watched"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "inner.py").touch()
    (folder / "outer.py").write_text("from watched import inner\nvalue = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield folder
    for name in [name for name in sys.modules if name.partition(".")[0] == "watched"]:
        del sys.modules[name]


@pytest.fixture
def watcher():
    return ImportWatcher({"watched"})


def test_the_function_is_called_once_at_the_end_of_the_outermost_import(package, watcher):
    calls = []

    def function():
        calls.append(importlib.import_module("watched.outer").value)  # fails if it is called at the end of `inner`

    watcher.call_after_import("watched.inner", function)
    importlib.import_module("watched")
    assert calls == []
    importlib.import_module("watched.outer")
    assert calls == [1]
    assert watcher not in sys.meta_path


def test_the_function_is_called_at_once_if_the_module_has_been_imported(package, watcher):
    importlib.import_module("watched.inner")
    calls = []
    watcher.call_after_import("watched.inner", lambda: calls.append(1))
    assert calls == [1]


def test_a_function_whose_call_imports_another_awaited_module_has_that_ones_called_too(package, watcher):
    calls = []
    watcher.call_after_import("watched.inner", lambda: calls.append("outer"))
    watcher.call_after_import("watched", lambda: importlib.import_module("watched.inner"))
    importlib.import_module("watched")
    assert calls == ["outer"]


def test_an_import_of_another_thread_delays_no_call(package, watcher):
    started, go_on = threading.Event(), threading.Event()
    (package / "slow.py").write_text("import watched\nwatched.started.set()\nassert watched.go_on.wait(60)\n")
    watched = importlib.import_module("watched")
    watched.started, watched.go_on = started, go_on
    calls = []
    watcher.call_after_import("watched.inner", lambda: calls.append(1))
    slow = threading.Thread(target=importlib.import_module, args=("watched.slow",))
    slow.start()
    assert started.wait(60)
    importlib.import_module("watched.inner")
    assert calls == [1]
    go_on.set()
    slow.join()


def test_a_failed_import_calls_nothing_and_can_be_repeated(package, watcher):
    calls = []
    (package / "outer.py").write_text("from watched import inner\nraise ValueError('no')\n")
    watcher.call_after_import("watched.inner", lambda: calls.append(1))
    with pytest.raises(ValueError, match="no"):
        importlib.import_module("watched.outer")
    assert calls == []
    importlib.import_module("watched")
    (package / "next.py").touch()
    importlib.import_module("watched.next")
    assert calls == [1]


def test_a_watched_module_keeps_its_own_loader(package, watcher):
    watcher.call_after_import("watched.never", lambda: None)
    module = importlib.import_module("watched.inner")
    assert type(module.__loader__) is type(module.__spec__.loader) is importlib.machinery.SourceFileLoader
    assert "inner" in importlib.util.find_spec("watched.outer").loader.get_source("watched.outer")
