"""What a dataset format is: how it is recognised, read and written.

Each format is one file in `formats/` that defines a `DatasetFormat`; the table `formats.FORMATS` lists them all, and a
plug-in may add its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modeling_detr.structures_detr import DetectionIndex, Task


@dataclass(frozen=True)
class ReadingOption:
    """An option that some formats take when they are read.

    Attributes:
        name: Keyword of `open_dataset`; also the name of the command-line option.
        help: One phrase that explains it.
        kind: Type of the value: `bool` is a switch, `Path` a folder that must exist.
        choices: The allowed values; empty: any.
    """

    name: str
    help: str
    kind: type[bool] | type[str] | type[Path]
    choices: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """`help` as a sentence."""
        return f"{self.help[0].upper()}{self.help[1:]}."


IMAGES_OPTION = ReadingOption("images", "folder of the images, if it is outside the dataset's folder", Path)


@dataclass(frozen=True, eq=False)
class WrittenDataset:
    """What a format has written.

    Attributes:
        index: The dataset as written: without what the format cannot hold.
        notes: What was left out or changed, one sentence each.
        keeps_splits: Whether reading it back gives the same splits, so that they can be compared one by one.
        readable: The part of `index` that reading gives back; None: all of it.
    """

    index: DetectionIndex
    notes: list[str]
    keeps_splits: bool = True
    readable: DetectionIndex | None = None


@dataclass(frozen=True)
class DatasetFormat:
    """One format of datasets on disk, on the Hub, or built in.

    Attributes:
        name: Value of `format` in `open_dataset`, and key in `FORMATS`.
        find: `find(path)`: whether a dataset in this format is at `path`, a folder or a file.
        read: `read(path, findings=…, task=…, **options)`: reads the dataset. `findings` takes or raises what is wrong;
            `task` is one of `tasks`; `options` are those of `options` that were given.
        looked_for: What `find` looks for, for the message about a folder in no format.
        tasks: The tasks that it has annotations for.
        options: The reading options that it takes.
        write: `write(index, folder, link)`: writes a dataset with its images into an empty folder; with `link`,
            images become hard links where possible. None: the format can only be read.
        find_hints: Like `find`, for weaker evidence, which counts only if no format is found.
        is_name: `is_name(text, chosen)`: whether `text` names such a dataset without being a path; `chosen` says
            whether the user has chosen this format.
        defers_to: Formats that are preferred where they are found too and have what the task needs.
    """

    name: str
    find: Callable[[Path], bool]
    read: Callable[..., DetectionIndex]
    looked_for: str
    tasks: tuple[Task, ...] = ("detection",)
    options: tuple[ReadingOption, ...] = ()
    write: Callable[[DetectionIndex, Path, bool], WrittenDataset] | None = None
    find_hints: Callable[[Path], bool] = lambda _: False
    is_name: Callable[[str, bool], bool] = lambda _text, _chosen: False
    defers_to: tuple[str, ...] = ()
