"""What an unfinished run of `detr predict` has done: a line for each image, from which the same command goes on.

The folder `.unfinished` of the results has a file of lines for each process that has worked on the run,
`settings.json`, and `lock`, which is locked while the run works. A line is written after the image's own files. A
killed process leaves at most one incomplete line, which is dropped, and its image is predicted again.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from modeling_detr.atomic_output import make_folder, replace_text, sync
from modeling_detr.errors_detr import OutputError
from modeling_detr.folder_lock import locked
from modeling_detr.input_files import read_json
from modeling_detr.model_folder_detr import EXPORTED_MODEL
from modeling_detr.output_errors import explained_output


FOLDER = ".unfinished"
_SETTINGS = "settings.json"
_LOCK = "lock"
_STATE = "state"

Entry = dict[str, Any]
"""What is known of an image: `image` (its path or URL), and its predictions; or `error`, why it could not be read."""

State = Sequence[str | int]
"""What an image and its name were when it was predicted; any change makes the entry void."""


class Journal:
    """The entries of a run, on disk.

    Args:
        results: The folder of the results.
    """

    def __init__(self, results: Path) -> None:
        self.folder = results / FOLDER
        self._states: dict[str, list[Any]] = {}
        self._places: dict[str, tuple[Path, int, int]] = {}  # image → file, offset and length of its entry
        self._failed: dict[str, str] = {}
        self._file: Any = None
        self._lock = ExitStack()

    def open(self, settings: Mapping[str, Any], *, is_main: bool = True) -> int:
        """Starts or continues a run; returns the number of images that are done. Processes call it one after another.

        Args:
            settings: What decides the predictions. A run continues with the same only.
            is_main: Whether this process locks the folder, and writes the settings.

        Raises:
            OutputError: Another run is working in the folder, an unfinished one with other settings is in it, or it
                cannot be written.
        """
        file = self.folder / _SETTINGS
        with explained_output(self.folder):
            if is_main:
                make_folder(self.folder)
                self._lock.enter_context(locked(self.folder / _LOCK, self._in_use))
            if file.is_file():
                self._check_settings(read_json(file), settings)
            elif is_main:
                replace_text(file, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
            self.read()
        return len(self._places)

    @property
    def images(self) -> list[str]:
        """The images that have predictions, in any state."""
        return [*self._places]

    def is_done(self, image: str, state: State = ()) -> bool:
        """Whether the image with a path or URL has its predictions, and is in the state in which they were made."""
        return image in self._places and self._states[image] == [*state]

    def add(self, entry: Entry, state: State = ()) -> None:
        """Adds the entry of an image; it survives when this process is killed.

        Args:
            entry: The entry. It replaces an earlier one of the image.
            state: What else decides the image's predictions and files, such as the time of its file.

        Raises:
            OutputError: It cannot be written.
        """
        with explained_output(self.folder):
            if self._file is None:
                self._file = (self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex}.jsonl").open("ab")
            self._file.write(json.dumps({**entry, _STATE: state}).encode("ascii") + b"\n")
            self._file.flush()

    def flush(self) -> None:
        """Brings the entries to the disk."""
        if self._file is not None:
            with explained_output(self.folder):
                os.fsync(self._file.fileno())
                self._file.close()
            self._file = None

    def close(self) -> None:
        """Brings the entries to the disk, and lets other runs into the folder."""
        try:
            self.flush()
        finally:
            self._lock.close()

    def read(self) -> None:
        """Looks again at what all processes have written."""
        self._places.clear()
        self._failed.clear()
        for file in sorted(self.folder.glob("*.jsonl")):  # from the earliest, as the last entry of an image counts
            offset = 0
            with file.open("rb") as lines:
                for line in lines:
                    self._index(file, offset, line)
                    offset += len(line)

    def entries(self, images: Sequence[str]) -> Iterator[Entry]:
        """The entries of images that are done, in the order of `images`, one at a time in memory."""
        files = {file: file.open("rb") for file in {place[0] for place in self._places.values()}}
        try:
            for image in images:
                if image in self._places:
                    file, offset, length = self._places[image]
                    files[file].seek(offset)
                    entry = json.loads(files[file].read(length))
                    entry.pop(_STATE, None)
                    yield entry
        finally:
            for opened in files.values():
                opened.close()

    def failures(self, images: Sequence[str]) -> dict[str, str]:
        """The images that could not be read, with the reason."""
        return {image: self._failed[image] for image in images if image in self._failed}

    def remove(self) -> None:
        """Ends the run: its results are written."""
        self.flush()
        with explained_output(self.folder):
            for file in self.folder.glob("*.jsonl"):  # before the settings, without which they would be another run's
                file.unlink()
            shutil.rmtree(self.folder)
            sync(self.folder.parent)
        self.close()

    def _index(self, file: Path, offset: int, line: bytes) -> None:
        try:
            entry = json.loads(line)
            image = entry["image"]
        except (ValueError, TypeError, KeyError):  # the last line of a killed process
            return
        if "error" in entry:
            self._places.pop(image, None)  # it changed since, and is damaged now
            self._failed[image] = entry["error"]
        else:
            self._places[image] = file, offset, len(line)
            self._states[image] = entry.get(_STATE, [])
            self._failed.pop(image, None)

    def _in_use(self, holder: str) -> OutputError:
        remedy = "wait for it, or choose another folder"
        return OutputError(self.folder.parent, f"{holder} is predicting into it", remedy)

    def _check_settings(self, found: Any, settings: Mapping[str, Any]) -> None:
        listed = changed_settings(found, settings)
        if listed:
            raise OutputError(
                self.folder.parent,
                f"holds an unfinished run with other settings ({listed})",
                f"repeat its command to finish it, choose another folder, or remove {self.folder}",
            )


def changed_settings(found: Any, settings: Mapping[str, Any]) -> str:
    """The settings that differ from those in a file: "threshold was 0.5, is 0.3"; empty if none does."""
    found = found if isinstance(found, dict) else {}
    changed = [name for name, value in settings.items() if found.get(name) != value]
    return ", ".join(f"{name} was {found.get(name)!r}, is {settings[name]!r}" for name in changed)


def files_of_model(model: Path) -> list[list[Any]]:
    """Size and time of a model's files, for the settings of a run; empty if it is not local."""
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in _model_files(model)]


def digest_of_model(model: Path) -> str:
    """What tells the content of a model's files from others, also of a copy; empty if it is not local."""
    digest = hashlib.sha256()
    files = _model_files(model)
    for file in files:
        with file.open("rb") as content:
            digest.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()[:16] if files else ""


def model_identity(model: str, config: object) -> str:
    """What tells a model from others wherever it is: the digest of its files, or its name and revision on the Hub.

    Args:
        model: What the user passed.
        config: Its config.
    """
    revision = getattr(config, "_commit_hash", None) or ""
    return digest_of_model(Path(model)) or f"{model} {revision}".strip()


def _model_files(model: Path) -> list[Path]:
    exported = model / EXPORTED_MODEL  # of a run, whose other files say nothing about the model
    folder = exported if (exported / CONFIG_NAME).is_file() else model
    files = [model] if model.is_file() else [*folder.glob("[!.]*")] if folder.is_dir() else []
    ignored = (".md", ".html", ".log", ".jsonl")
    return sorted(file for file in files if file.is_file() and file.suffix not in ignored)
