"""Errors that say where the problem is, what is wrong and how to fix it, and suggestions for misspelt names.

If an argument of the function that raised the error fixes it, the error names that argument (`settings`). Python shows
it as `format='coco'`; a command shows the same error with its own option, `--data_format coco`.

Messages quote names from data, which may contain anything: `printable` keeps them on one line and harmless.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping


RAISED_ON = "raised on rank "  # begins the note of an error that another process has raised; see `add_note`
_MAX_TEXT = 1200  # characters of a problem
# Control characters, line and paragraph separators, surrogates (in file names that are not UTF-8), and characters that
# reorder the text after them (https://trojansource.codes). Joiners stay: emoji and several scripts need them.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def printable(text: object) -> str:
    r"""A text from data, such as a class or file name, as one line that is safe to print.

    Characters that control a terminal, break the line or reorder text become escapes such as `\u001b`, which are also
    valid in JSON. Text in any script stays as it is.
    """
    return _UNPRINTABLE.sub(lambda match: _escape(match[0]), str(text))


def _escape(character: str) -> str:
    return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\u{ord(character):04x}")


def python_argument(name: str, value: object) -> str:
    """A setting as a Python argument: `format='coco'`."""
    return f"{name}={value!r}"


class DetrError(Exception):
    """Base class of errors that the user can fix. Most subclasses also derive from a built-in exception.

    Attributes:
        where: The file, image, key or object that is wrong.
        problem: What was found and what was expected.
        remedy: What fixes it; may be empty.
        settings: Arguments of the function that raised the error which fix it, name → value.
    """

    def __init__(
        self, where: object, problem: str = "", remedy: str = "", settings: Mapping[str, object] | None = None
    ) -> None:
        where, problem = _shortened(str(where)) if problem else str(where), _shortened(problem)
        super().__init__(where, problem, remedy)
        self.where = where
        self.problem = problem
        self.remedy = remedy
        self.settings = dict(settings or {})

    def __reduce__(self) -> tuple[object, ...]:
        # for pickling between processes: the built-in bases would rebuild the error from `args` alone
        return type(self), (self.where, self.problem, self.remedy, self.settings)

    def to_text(self, format_setting: Callable[[str, object], str] = python_argument) -> str:
        """The error as one sentence, `printable`.

        (An attribute called `message` would break how PyTorch rebuilds loader errors.)

        Args:
            format_setting: Formats a setting the way the user would write it.
        """
        if not self.problem:  # PyTorch rebuilds errors of loader processes from their text alone
            return "\n".join(map(printable, self.where.split("\n")))
        remedy = self.remedy_with_settings(format_setting)
        problem = f"{self.problem.removesuffix('.')}; {remedy}" if remedy else self.problem
        text = f"{self.where}: {problem}"
        return printable(text if text.endswith((".", "?")) else f"{text}.")

    def remedy_with_settings(self, format_setting: Callable[[str, object], str] = python_argument) -> str:
        """The remedy, followed by the settings that apply it; empty if there are neither."""
        settings = ", ".join(format_setting(name, value) for name, value in self.settings.items())
        return f"{self.remedy} ({settings})" if settings and self.remedy else settings or self.remedy

    def __str__(self) -> str:
        return self.to_text()


def _shortened(text: str) -> str:
    """Leave out the middle of a text that quotes a very long value."""
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT * 2 // 3]} … {text[-_MAX_TEXT // 4 :]}"


class FileReadError(DetrError, OSError):
    """A file that exists but cannot be read, for example because it is a named pipe."""


class FileMissingError(FileReadError, FileNotFoundError):
    """A file that does not exist."""


class FileContentError(DetrError, ValueError):
    """A file that is not valid text, JSON, YAML or XML."""


class DatasetError(DetrError, ValueError):
    """A dataset that cannot be used as it is."""


class DatasetNotFoundError(DetrError, FileNotFoundError):
    """A dataset, or one of its files, that does not exist."""


class DatasetReadError(DetrError, OSError):
    """A file of a dataset that exists but cannot be read."""


class StoreError(DetrError, OSError):
    """An object store or web server that does not answer. No image takes the place of one that it keeps back."""


class ModelError(DetrError, ValueError):
    """A model or a checkpoint file that cannot be loaded or converted."""


class ModelNotFoundError(DetrError, FileNotFoundError):
    """A model or a checkpoint file that does not exist."""


class ModelDownloadError(DetrError, OSError):
    """A released model that cannot be downloaded."""


class VideoError(DetrError, OSError):
    """A video, a stream or a camera that cannot be read or written."""


class PredictionError(DetrError, ValueError):
    """Predictions that do not fit the dataset they are scored on."""


class CheckpointError(DetrError, ValueError):
    """A checkpoint that a run cannot resume from."""


class CheckpointVersionError(CheckpointError):
    """A training checkpoint that another version of this package has written, and that this one cannot read."""


class RecipeError(DetrError, ValueError):
    """A recipe key that is unknown, has an invalid value, or conflicts with another key."""


class RecipeNotFoundError(DetrError, FileNotFoundError):
    """A recipe that is neither a file nor built in."""


class StudyError(DetrError, ValueError):
    """A study of `detr benchmark` that does not exist or is not valid."""


class BenchmarkError(DetrError, ValueError):
    """A measurement of `detr benchmark` that cannot be made, or that would compare different results."""


class SearchError(DetrError, ValueError):
    """A search of `detr tune` that is not valid, or cannot start or continue."""


class RunInUseError(DetrError, ValueError):
    """A run's folder that another process is training in."""


class RunNotFoundError(DetrError, FileNotFoundError):
    """The folder of a training run that does not exist or has no log."""


class CurveError(DetrError, ValueError):
    """Training curves that cannot be drawn as requested."""


class PreflightError(DetrError, ValueError):
    """A problem that the checks before the first step have found."""


class OutOfMemoryError(DetrError, RuntimeError):
    """A step that does not fit into memory, even in parts.

    Attributes:
        image_indices: Indices in the dataset of the images that do not fit.
    """

    def __init__(
        self,
        where: object,
        problem: str = "",
        remedy: str = "",
        settings: Mapping[str, object] | None = None,
        image_indices: Iterable[int] = (),
    ) -> None:
        super().__init__(where, problem, remedy, settings)
        self.image_indices = tuple(image_indices)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.where, self.problem, self.remedy, self.settings, self.image_indices)


class LoaderError(DetrError, RuntimeError):
    """Data loading processes that cannot start, have ended, keep the run waiting, or have raised an error."""


class LaunchError(DetrError, ValueError):
    """The processes of a command cannot be started."""


class ServeError(DetrError, ValueError):
    """A server of `detr serve` that cannot start."""


class PluginError(DetrError):
    """An installed plug-in that cannot be imported."""


class OutputError(DetrError, OSError):
    """A file or folder that cannot be written, for example because the disk is full."""


class OutputExistsError(DetrError, FileExistsError):
    """A file or folder that must not exist yet, but does."""


def nearest_name(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` most likely misspells, or None."""
    nearest = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return nearest[0] if nearest else None


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The remedy for an unknown name: `did you mean 'name'?`, or the names to choose from."""
    names = list(names)
    nearest = nearest_name(name, names)
    if nearest is not None:
        return f"did you mean '{nearest}'?"
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"expected one of {shown}."
