"""KITTI's object format (https://www.cvlibs.net/datasets/kitti/eval_object.php), also as NVIDIA TAO writes it.

    training/label_2/000000.txt  training/image_2/000000.png     KITTI
    train/labels/a.txt           train/images/a.jpg              others
    ImageSets/train.txt                                          lists of stems, if there are any
    label_02/0000.txt            image_02/0000/000000.png        videos, with frame and track before the class

A line has a class and 14 numbers, or 15 with a score: truncated, occluded, alpha, left, top, right, bottom, and seven
of the object in space. The name of a class may have several words. Regions of the class DontCare are left out.
"""

from collections.abc import Sequence
from pathlib import Path

from modeling_detr.data.annotations import to_number
from modeling_detr.data.dataset_format import BOXES_OPTION, IMAGES_OPTION, DatasetFormat, Purpose
from modeling_detr.data.findings import Findings, counted
from modeling_detr.data.formats import drawn_shapes
from modeling_detr.data.formats.tool_exports import ToolExport, files_with_suffix, first_line, sample_files
from modeling_detr.errors_detr import FileContentError, FileReadError
from modeling_detr.input_files import MAX_LIST_BYTES, read_text
from modeling_detr.structures_detr import DetectionIndex


_NUMBERS = (14, 15)
_MAX_FRAMES = 100_000  # of a video


def _is_kitti(path: Path) -> bool:
    return path.is_dir() and any(_split_line(first_line(file).split()) for file in sample_files(path, ".txt"))


def _split_line(fields: Sequence[str]) -> tuple[str, list[float]] | None:
    """Return the class and the numbers of a line; None if it has no class, or another number of numbers."""
    if _is_tracked(fields):
        fields = fields[2:]
    words = max((index + 1 for index, field in enumerate(fields) if not _is_number(field)), default=0)
    if not words or len(fields) - words not in _NUMBERS:
        return None
    return " ".join(fields[:words]), [*map(to_number, fields[words:])]


def _is_tracked(fields: Sequence[str]) -> bool:
    """Whether a line begins with the number of a frame and of a track, before the class."""
    return len(fields) > 2 and all(map(_is_integer, fields[:2])) and not _is_number(fields[2])


def _is_integer(text: str) -> bool:
    return text.removeprefix("-").isdecimal() and len(text) < 10


def _is_number(text: str) -> bool:
    try:
        to_number(text)
    except ValueError:
        return False
    return True


def _read(
    path: str | Path,
    *,
    findings: Findings,
    task: Purpose,
    images: str | Path | None = None,
    boxes: str | None = None,
) -> DetectionIndex:
    export = ToolExport(path, findings, task, images, boxes, noun="line")
    texts = files_with_suffix(Path(path), ".txt")
    lists = [file for file in texts if file.parent.name == "ImageSets"]
    labels = [file for file in texts if any("label" in part.lower() for part in file.relative_to(path).parts[:-1])]
    if not labels:  # beside the images
        labels = [file for file in texts if file not in lists and export.is_there([f"{file.parent.name}/{file.stem}"])]
    image_of: dict[str, list[int]] = {}
    for file in labels:
        try:
            lines = read_text(file, errors="replace").splitlines()
        except FileReadError as error:
            findings.add("unreadable file", error, cause=error)
            continue
        if lines and _is_tracked(lines[0].split()):
            _read_sequence(export, file, lines)
            continue
        image = export.add_image(file, [file.stem], folder=file.parent)
        image_of.setdefault(file.stem, []).append(image)
        for number, line in enumerate(lines, start=1):
            _read_line(export, image, file, number, line.split())
    for file in lists:
        _read_list(export, file, image_of, findings)
    return export.index()


def _read_sequence(export: ToolExport, file: Path, lines: Sequence[str]) -> None:
    """Read the lines of a video, whose frames are numbered images; one without a line has no objects."""
    image_of: dict[int, int] = {}
    frames = [int(line.split()[0]) if _is_tracked(line.split()) else 0 for line in lines]
    named = set(frames)
    for frame in range(max(frames) + 1 if max(frames) < _MAX_FRAMES else 0):
        names = [f"{file.stem}/{frame:06d}"]
        if frame in named or export.is_there(names):
            image_of[frame] = export.add_image(f"{file}, frame {frame}", names, folder=file.parent)
    for number, (frame, line) in enumerate(zip(frames, lines, strict=True), start=1):
        if frame in image_of:
            _read_line(export, image_of[frame], file, number, line.split())
        elif line.strip():
            message = f"is in frame {frame}, expected a number from 0 to {_MAX_FRAMES:,}"
            export.findings.error("line", f"{file}, line {number}", message, "correct or remove the line")


def _read_line(export: ToolExport, image: int, file: Path, number: int, fields: Sequence[str]) -> None:
    if not fields:
        return
    line = _split_line(fields)
    if line is None:
        message = (
            f"got {counted(len(fields), 'field')} ('{' '.join(fields)[:80]}'), expected a class and 14 or 15 numbers"
        )
        export.findings.error("line", f"{file}, line {number}", message, "correct or remove the line")
    elif line[0].lower() == "dontcare":
        export.leave_out(image, number, "DontCare region", "has no class")
    else:
        left, top, right, bottom = line[1][3:7]
        shape = drawn_shapes.DrawnShape("box", (left, top, right, bottom))
        export.add_object(image, line[0], number, shape, attributes=_attributes(line[1]))


def _attributes(numbers: Sequence[float]) -> dict[str, float]:
    """The marks of a line: what share is truncated, how much is occluded (1 or 2; 3: unknown), and the score."""
    truncated, occluded = numbers[:2]
    attributes: dict[str, float] = {}
    if truncated >= 0:  # otherwise unknown
        attributes["truncated"] = float(truncated > 0)
    if 0 <= occluded < 3:
        attributes["occluded"] = float(occluded > 0)
    if len(numbers) == max(_NUMBERS):
        attributes["score"] = numbers[-1]
    return attributes


def _read_list(export: ToolExport, file: Path, image_of: dict[str, list[int]], findings: Findings) -> None:
    try:
        names = read_text(file, MAX_LIST_BYTES).split()
    except (FileReadError, FileContentError) as error:
        findings.add("unreadable file", error, cause=error)
        return
    members = [image for name in names for image in image_of.get(Path(name).stem, [])]
    if members:  # others are lists of the images of a challenge, which have no labels
        export.splits[file.stem] = members


FORMAT = DatasetFormat(
    name="kitti",
    find=_is_kitti,
    read=_read,
    looked_for="label_2/*.txt",
    evidence=".txt files with lines of a class and 14 or 15 numbers",
    options=(IMAGES_OPTION, BOXES_OPTION),
)
