"""Errors that say where, what is wrong and how to fix it; and the suggestion for a misspelt name.

An error names what fixes it as an argument of the function that raised it (`settings`). Printed from Python it reads
`format='coco'`; a command prints the same error with its own option, `--data_format coco`.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping


def python_argument(name: str, value: object) -> str:
    """How a setting is written in Python: `format='coco'`."""
    return f"{name}={value!r}"


class DetrError(Exception):
    """Something the user can fix. Raised as one of its subclasses, which are also built-in exceptions.

    Attributes:
        where: The file, image, key or object that is wrong.
        problem: What was found and what was expected.
        remedy: What fixes it; may be empty.
        settings: The arguments of the function that raised it which fix it, by name.
    """

    def __init__(
        self, where: object, problem: str = "", remedy: str = "", settings: Mapping[str, object] | None = None
    ) -> None:
        super().__init__(where, problem, remedy)
        self.where = str(where)
        self.problem = problem
        self.remedy = remedy
        self.settings = dict(settings or {})

    def __reduce__(self) -> tuple[object, ...]:
        # the built-in bases would rebuild it from `args` alone; it crosses process boundaries
        return type(self), (self.where, self.problem, self.remedy, self.settings)

    def to_text(self, spell: Callable[[str, object], str] = python_argument) -> str:
        """The error as one sentence. (Not called `message`: PyTorch would take it for an argument of the class.)

        Args:
            spell: Writes a setting the way the user can give it.
        """
        if not self.problem:  # rebuilt from its own message, as PyTorch does with errors of loader processes
            return self.where
        remedy = self.remedy_with_settings(spell)
        text = f"{self.where}: {self.problem}{'; ' if remedy else ''}{remedy}"
        return text if text.endswith((".", "?")) else f"{text}."

    def remedy_with_settings(self, spell: Callable[[str, object], str] = python_argument) -> str:
        """The remedy, followed by the settings that apply it; empty if there are neither."""
        settings = ", ".join(spell(name, value) for name, value in self.settings.items())
        return f"{self.remedy} ({settings})" if settings and self.remedy else settings or self.remedy

    def __str__(self) -> str:
        return self.to_text()


class DatasetError(DetrError, ValueError):
    """A dataset that cannot be used as it is."""


class DatasetNotFoundError(DetrError, FileNotFoundError):
    """A dataset, or a file of it, that does not exist."""


class DatasetReadError(DetrError, OSError):
    """A file of a dataset that exists but cannot be read."""


class ModelError(DetrError, ValueError):
    """A model or a checkpoint file that cannot be loaded or converted."""


class ModelNotFoundError(DetrError, FileNotFoundError):
    """A model or a checkpoint file that does not exist."""


class ModelDownloadError(DetrError, OSError):
    """A released model that cannot be downloaded."""


class PredictionError(DetrError, ValueError):
    """Predictions that do not fit the dataset they are scored on."""


class CheckpointError(DetrError, ValueError):
    """A checkpoint that a run cannot resume from."""


class RecipeError(DetrError, ValueError):
    """A key of a recipe that is unknown, or has a value that is not allowed or does not fit another key."""


class RecipeNotFoundError(DetrError, FileNotFoundError):
    """A recipe that is neither a file nor a built-in one."""


class RunNotFoundError(DetrError, FileNotFoundError):
    """The folder of a training run that does not exist, or has no log."""


class PluginError(DetrError):
    """An installed plug-in that cannot be imported."""


class OutputError(DetrError, OSError):
    """A file or folder that cannot be written, for example because the disk is full."""


class OutputExistsError(DetrError, FileExistsError):
    """A file or folder that must not exist yet."""


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name that `name` is most likely a misspelling of, if any."""
    nearest = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return nearest[0] if nearest else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What follows "unknown key 'nam'" in an error: `did you mean 'name'?`, or the names to choose from."""
    known = list(known)
    nearest = nearest_name(name, known)
    if nearest is not None:
        return f"did you mean '{nearest}'?"
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f"expected one of {shown}."
