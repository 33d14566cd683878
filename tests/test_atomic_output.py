"""Output is complete or absent, whatever interrupts it: errors, a full disk, and SIGKILL at every file operation."""

import errno
import functools
import itertools
import os
import resource
import signal
from pathlib import Path

import pytest
from killed_writes import in_child, killed_before
from safetensors import SafetensorError

from modeling_detr.atomic_output import (
    new_file,
    new_folder,
    previous_path,
    replace_text,
    replaced_file,
    replaced_folder,
    restore_interrupted,
)
from modeling_detr.errors_detr import OutputError


def make_folder(target: Path, text: str = "new") -> None:
    with new_folder(target) as folder:
        for name in "ab":
            (folder / name).write_text(text)


def make_file(target: Path, text: str = "new") -> None:
    with new_file(target) as file:
        file.write_text(text)


def replace_folder(target: Path, text: str = "new") -> None:
    with replaced_folder(target) as folder:
        for name in "ab":
            (folder / name).write_text(text)


def replace_file(target: Path, text: str = "new") -> None:
    replace_text(target, text)


WRITERS = [make_folder, make_file, replace_folder, replace_file]
writers = pytest.mark.parametrize("write", WRITERS)
replacing = pytest.mark.parametrize("write", WRITERS[2:])


def content(target: Path) -> str | None:
    """The text of a file, or of both files of a folder; None if there is no target."""
    if target.is_dir():
        assert sorted(path.name for path in target.iterdir()) == ["a", "b"]
        first, second = ((target / name).read_text() for name in "ab")
        assert first == second
        return first
    return target.read_text() if target.exists() else None


@writers
def test_output_appears_only_when_complete(write, tmp_path):
    target = tmp_path / "deep" / "target"
    write(target)
    assert content(target) == "new"
    assert list(target.parent.iterdir()) == [target]


@replacing
def test_existing_output_is_replaced(write, tmp_path):
    target = tmp_path / "target"
    write(target, "old")
    write(target, "new")
    assert content(target) == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("write", [make_folder, make_file])
def test_new_output_does_not_overwrite(write, tmp_path):
    target = tmp_path / "target"
    for create in (target.mkdir, target.touch, functools.partial(target.symlink_to, "nowhere")):
        create()
        with pytest.raises(FileExistsError, match=r"target: already exists; choose another target or remove it\.$"):
            write(target)
        target.rmdir() if target.is_dir() else target.unlink()


@pytest.mark.parametrize("output", [new_folder, new_file])
def test_a_target_that_another_process_creates_in_the_meantime_stays(output, tmp_path):
    target = tmp_path / "target"

    def write() -> None:
        with output(target) as partial:
            (partial / "file" if partial.is_dir() else partial).touch()
            target.write_text("other")

    with pytest.raises(FileExistsError, match="target: already exists"):
        write()
    assert target.read_text() == "other"
    assert list(tmp_path.iterdir()) == [target]


def fail_in(output, target: Path, error: BaseException, hidden_by: Exception | None = None) -> None:
    """Writes and then fails, with another error raised while handling the first."""
    with output(target) as partial:
        (partial / "file" if partial.is_dir() else partial).touch()
        try:
            raise error
        finally:
            if hidden_by is not None:
                raise hidden_by


@pytest.mark.parametrize("output", [new_folder, new_file, replaced_folder, replaced_file])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("bad data"), FileNotFoundError(2, "none", "x.jpg")])
def test_an_error_passes_and_leaves_nothing(output, error, tmp_path):
    with pytest.raises(type(error)) as raised:
        fail_in(output, tmp_path / "target", error)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


@replacing
@pytest.mark.parametrize(
    "errors",
    [
        (OSError(errno.ENOSPC, "No space left on device"),),
        (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("file write failed")),
        (SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),),
    ],
    ids=["python", "hidden", "rust"],
)
def test_a_full_disk_is_named_and_the_previous_output_stays(write, errors, tmp_path):
    target = tmp_path / "target"
    write(target, "old")
    message = rf"^{target}: cannot be written \(No space left on device\); the previous (file|folder) is unchanged; "
    message += r"free some space, or choose another folder\.$"
    with pytest.raises(OutputError, match=message):
        fail_in(replaced_folder if target.is_dir() else replaced_file, target, *errors)
    assert content(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


@writers
def test_a_limit_on_the_size_of_files_is_an_output_error(write, tmp_path):
    def run() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        with pytest.raises(OutputError, match=r"target: cannot be written \(File too large\)"):
            write(tmp_path / "target", "x" * 100)

    assert in_child(run) == 0
    assert list(tmp_path.iterdir()) == []


@writers
def test_a_folder_that_cannot_be_created_is_an_output_error(write, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"file/target: cannot be written \(Not a directory\)"):
        write(tmp_path / "file" / "target")


@writers
def test_a_kill_at_any_moment_leaves_the_old_or_the_new_output(write, tmp_path):
    outcomes = []
    for operation in itertools.count():
        folder = tmp_path / str(operation)
        folder.mkdir()
        target = folder / "target"
        if write in (replace_folder, replace_file):
            write(target, "old")
        killed = killed_before(operation, functools.partial(write, target))
        restore_interrupted(folder)
        outcomes.append(content(target))
        assert {path.name for path in folder.iterdir()} <= {"target"}
        if not killed:
            break
    before = None if write in (make_folder, make_file) else "old"
    assert set(outcomes) == {before, "new"}
    assert outcomes[0] == before
    assert len(outcomes) > 4


@replacing
def test_after_a_kill_at_any_moment_the_next_write_succeeds_and_cleans_up(write, tmp_path):
    for operation in itertools.count():
        folder = tmp_path / str(operation)
        folder.mkdir()
        write(folder / "target", "old")
        killed = killed_before(operation, functools.partial(write, folder / "target"))
        write(folder / "target", "newer")
        assert content(folder / "target") == "newer"
        assert [path.name for path in folder.iterdir()] == ["target"]
        if not killed:
            break


def test_a_failed_rename_brings_the_previous_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "target"
    replace_folder(target, "old")
    rename = Path.rename

    def fail(self, to):
        if ".partial" in self.name and to == target:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match=r"target: cannot be written \(Permission denied\); the previous folder is"):
        replace_folder(target)
    assert content(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_previous_folder_without_a_successor_is_restored(tmp_path):
    replace_folder(tmp_path / "model", "old")
    (tmp_path / "model").rename(previous_path(tmp_path / "model"))
    restore_interrupted(tmp_path)
    assert content(tmp_path / "model") == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_partial_output_of_running_processes_stays(tmp_path):
    with new_folder(tmp_path / "target") as mine:
        pass
    name = mine.name.rpartition("-")[0]
    gone, running, elsewhere = (tmp_path / f"{name}{end}" for end in ("-99999999", f"-{os.getppid()}", ".other-1"))
    for folder in (gone, running, elsewhere):
        folder.mkdir()
    replace_folder(tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"target", running.name, elsewhere.name}


@writers
def test_a_power_cut_finds_contents_and_names_on_disk(tmp_path, monkeypatch, write):
    """What is renamed was synced before, the folder with the new name right after."""
    synced, renamed = set(), []

    def fsync(descriptor):
        synced.add(os.fstat(descriptor).st_ino)

    def check(rename):
        def renames(source, target, *arguments):
            if ".partial-" in Path(source).name and Path(target) == tmp_path / "target":
                source = Path(source)
                everything = [source, *source.rglob("*")]
                assert {path.stat().st_ino for path in everything} <= synced
                synced.discard(tmp_path.stat().st_ino)
                renamed.append(target)
            return rename(source, target, *arguments)

        return renames

    monkeypatch.setattr(os, "fsync", fsync)
    for owner, name in ((Path, "rename"), (Path, "replace"), (os, "link")):
        monkeypatch.setattr(owner, name, check(getattr(owner, name)))
    write(tmp_path / "target")
    assert tmp_path.stat().st_ino in synced
    if write in WRITERS[2:]:
        write(tmp_path / "target", "newer")
        assert tmp_path.stat().st_ino in synced
    assert len(renamed) == (2 if write in WRITERS[2:] else 1)
