import errno
import os

import pytest

from modeling_detr.atomic_output import replace_text
from modeling_detr.errors_detr import OutputError
from modeling_detr.output_errors import check_file, check_folder, explained_output, write_failure


def system_error(number: int, file=None) -> OSError:
    return OSError(number, os.strerror(number), file)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, "(Read-only file system); mount its file system for writing, or choose another folder."),
        (errno.EACCES, "(Permission denied); change its permissions, or choose another folder."),
        (errno.EPERM, "(Operation not permitted); change its permissions, or choose another folder."),
        (errno.EDQUOT, "(Disk quota exceeded); free some of your disk quota, or choose another folder."),
        (errno.ENOSPC, "(No space left on device); free some space, or choose another folder."),
        (errno.EFBIG, "(File too large); raise the limit on the size of files (ulimit -f), or choose another folder."),
        (errno.EIO, "(Input/output error); check the disk, or choose another folder."),
        (errno.ENAMETOOLONG, "(File name too long); choose a shorter name."),
        (errno.EBUSY, "(Device or resource busy); choose another folder."),
    ],
)
def test_each_reason_has_its_remedy(tmp_path, number, message):
    target = tmp_path / "target"
    with pytest.raises(OutputError) as raised, explained_output(target):
        raise system_error(number)
    assert str(raised.value) == f"{target}: cannot be written {message}"


@pytest.mark.parametrize("check", [check_folder, lambda place: check_file(place / "file")])
def test_a_check_leaves_nothing_and_creates_no_folder(tmp_path, check):
    check(tmp_path / "new/folder")
    check(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "folder/log.jsonl").mkdir(parents=True)
    (tmp_path / "folder/checkpoints").touch()
    for name in ("file", "file/run", "file/deep/run"):
        with pytest.raises(OutputError, match=rf"\(Not a directory\); move {tmp_path}/file away, which is a file"):
            check_folder(tmp_path / name)
    with pytest.raises(OutputError, match=rf"{tmp_path}/link/run: .* move {tmp_path}/link away, which is a broken"):
        check_folder(tmp_path / "link/run")
    with pytest.raises(OutputError, match=rf"{tmp_path}/folder/log.jsonl: .*\(Is a directory\); move the folder of"):
        check_folder(tmp_path / "folder", files=["recipe.yaml", "log.jsonl"])
    with pytest.raises(OutputError, match=rf"move {tmp_path}/folder/checkpoints away, which is a file"):
        check_folder(tmp_path / "folder", folders=["model", "checkpoints"])
    for target in ("n" * 300, f"new/{'n' * 300}/folder"):
        with pytest.raises(OutputError, match=r"n: cannot be written \(File name too long\)|n/folder: .*too long"):
            check_folder(tmp_path / target)


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path):
    for name in ("n" * 255, "ä" * 127):
        check_file(tmp_path / name)
        replace_text(tmp_path / name, "old")
        replace_text(tmp_path / name, "new")
        assert (tmp_path / name).read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2


def test_errors_of_reading_are_not_taken_for_errors_of_writing(tmp_path):
    (tmp_path / "out").mkdir()
    elsewhere = system_error(errno.EACCES, str(tmp_path / "image.jpg"))
    assert write_failure(elsewhere, [tmp_path / "out"]) is None
    assert write_failure(system_error(errno.EACCES, str(tmp_path / "out/a")), [tmp_path / "out"]) is not None
    assert write_failure(system_error(errno.ENOSPC), [tmp_path / "out"]) is not None
    assert write_failure(ValueError("out"), [tmp_path / "out"]) is None
