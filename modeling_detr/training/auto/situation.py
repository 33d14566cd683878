"""What a choice of `detr train auto` may look at, and what it returns.

Settings are flat here: recipe keys by name, and the entries of a mapping by its name and theirs, as on the command
line: `{"batch_size": 4, "model_config.num_queries": 60}`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.training.auto.facts import DataFacts


class Pace(NamedTuple):
    """What a run spends its time on.

    Attributes:
        steps_per_epoch: Optimizer steps of an epoch.
        step: Seconds of a step, its images included.
        evaluation: Seconds of an evaluation.
        checkpoint: Seconds of a checkpoint.
    """

    steps_per_epoch: int
    step: float
    evaluation: float
    checkpoint: float


class Choice(NamedTuple):
    """The value of a key, and why.

    Attributes:
        value: The value, as in a recipe.
        reason: The reason, for the user.
        shown: How the value is printed, if not as in a recipe.
    """

    value: Any
    reason: str
    shown: str | None = None


@dataclass(frozen=True)
class Situation:
    """What is known before a choice.

    Attributes:
        data: The dataset.
        settings: The base recipe, the choices so far, and what the user gives.
        given: The keys that the user gives.
        minutes: The time for training.
        device: Type of the device: `cpu`, `cuda`, ….
        cores: CPU cores of each process.
        has_bf16: Whether the device computes in bfloat16 fast enough to gain from it.
        num_processes: Number of training processes.
        pretrained: Config of the model to fine-tune; None: a new model.
        pretrained_size: Shortest and longest edge of its images; the longest may be None.
        measure: Measures the pace of a run with some settings.
    """

    data: DataFacts
    settings: Mapping[str, Any]
    given: frozenset[str]
    minutes: float
    device: str
    cores: int
    has_bf16: bool
    num_processes: int
    pretrained: DetrConfig | None
    pretrained_size: tuple[int, int | None] | None
    measure: Callable[[Mapping[str, Any]], Pace]

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key so far."""
        value = self.settings.get(key)
        return default if value is None else value

    @property
    def is_new(self) -> bool:
        """Whether the model is new, rather than fine-tuned."""
        return self.pretrained is None

    @property
    def fills_time(self) -> bool:
        """Whether the time decides how long the run is; otherwise the user gives its epochs or steps."""
        return not {"epochs", "max_steps"} & self.given

    @property
    def has_masks(self) -> bool:
        """Whether the task has masks."""
        return bool(self.get("task", "detection") != "detection")

    @property
    def images_per_step(self) -> int:
        """Images of an optimizer step, over all processes."""
        return int(self.get("batch_size", 1) * self.get("gradient_accumulation_steps", 1) * self.num_processes)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch; images that do not fill a last step wait for the next epoch."""
        return max(1, self.data.num_images // self.images_per_step)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run; its epochs must have been chosen."""
        steps = self.steps_per_epoch * int(self.settings["epochs"])
        return min(steps, int(self.get("max_steps", steps)))


def flattened(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recipe with the entries of mappings as keys of their own."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping) and name in MAPPINGS:
            flat |= {f"{name}.{inner}": entry for inner, entry in value.items()}
        else:
            flat[name] = value
    return flat


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The opposite of `flattened`; a key may lie deeper (`processor_config.size.shortest_edge`)."""
    values: dict[str, Any] = {}
    for name, value in settings.items():
        *outer, last = name.split(".")
        place = values
        for part in outer:
            inner = place.get(part)
            place[part] = place = dict(inner) if isinstance(inner, Mapping) else {}
        place[last] = value
    return values


MAPPINGS = ("model_config", "processor_config", "transform_options")
