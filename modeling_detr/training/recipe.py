"""The recipe: everything that decides one training run, typed, from one YAML file and the command line.

`detr train configs/bccd.yaml --learning_rate 2e-4 --model_config.num_queries 50` reads the file, lets the command
line win, and refuses what it does not know. What the weights mean is the model's `config.json`, what the pixels mean
the processor's `preprocessor_config.json`: a recipe only says, under `model_config` and `processor_config`, what a new
model and processor shall be made of.
"""

import argparse
import dataclasses
import difflib
import inspect
import re
import types
import typing
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from modeling_detr.data.hf_datasets import BoxFormat
from modeling_detr.structures_detr import Task
from modeling_detr.training.optimization import LearningRateSchedule


_KEYS_OF_NEW_MODELS = ("model_config", "backbone_weights", "local_start")


@dataclass(frozen=True)
class Recipe:
    """One training run. Batch sizes are per process.

    Attributes:
        task: What is learnt: 'detection' (boxes), 'instance' (things with their masks) or 'panoptic' (every pixel
            belongs to a thing or to stuff). The last two train a DetrForSegmentation.
        data: Dataset: a folder or file in COCO, YOLO or VOC format, of Hugging Face's datasets, its name on the Hub,
            or 'shapes'.
        data_format: Format of the dataset, 'hf' is that of Hugging Face's datasets; none: found out.
        images: Folder that the images lie in, if that is outside the dataset's folder.
        drop_difficult: Leave out objects that Pascal VOC marks as difficult.
        box_format: Convention of the boxes in the format 'hf', e.g. 'xyxy' or 'cxcywh_normalized'; none: found out.
        label_ids: What the labels are; 'dense': 0 to C-1, or those of 'model' where it knows every class of the
            dataset by name; 'raw': the dataset's own ids, as in the original, up to the highest.
        train_split: Split to train on, several joined by '+'; none: the one with a usual name.
        eval_split: Split to evaluate on; none: the one with a usual name.
        eval_fraction: Share of the training images that is held out for evaluation, for data without such a split.
        output_dir: Folder of the run; none: runs/ and the name of the YAML file.
        model: Model to start from: a folder or Hub id; none: a new one from model_config.
        model_config: Keys of DetrConfig, for a new model or to change those of 'model'.
        head_init: What the class head of 'model' becomes where the dataset has other classes: 'by_name': rows of
            classes that both know move to their new places, others start low; 'fresh': random if its size changes.
        label_mapping: Names of classes of 'model', and those of the dataset that take over their rows.
        processor_config: Keys of the image processor, e.g. its size.
        backbone_weights: Weights of a new model's backbone: a timm name (resnet50.tv_in1k, downloaded), or a
            .safetensors or .pth file with timm's names.
        transform: Augmentation: 'original', 'light', 'none', or a dotted name of your own.
        transform_options: Arguments of the augmentation, e.g. its scales; sizes follow the processor's by themselves.
        no_flip_classes: Classes, by name, whose images are never mirrored: signs of left and right, text. (With
            transform_options.flip_probability 0 none is.)
        batching: Which images share a batch: 'random', as in the original, or 'size': those of like size, which
            saves padding.
        batch_size: Images in a batch of one process.
        max_pixels_per_batch: Most pixels, padding included, that pass through the model at once. A batch with more is
            taken in parts; the step stays the same images and the same gradient.
        gradient_accumulation_steps: Batches of each process in one optimizer step.
        num_workers: Loader processes beside each training process.
        epochs: Passes over the training images.
        max_steps: Stop after this many optimizer steps, even within the epochs.
        learning_rate: Rate of the transformer and the heads.
        backbone_learning_rate: Rate of the backbone; 0 freezes it.
        scale_lr: Fit both rates to the images of a step, over all processes; 'sqrt': by the root of their number over
            scale_lr_from, as suits AdamW; 'linear': by the ratio itself; none: they stay as they are given.
        scale_lr_from: Images of a step that the rates are meant for; the original's are 8 processes of 2.
        freeze: Parameters that do not train, by globs or regular expressions of their names, e.g. model.backbone.
            The running statistics of batch norms go on; model_config.freeze_batch_norm stops those.
        freeze_detector: Train only what makes masks, on a detector that stays as it is: the original's second stage,
            from the --model of the first.
        weight_decay: Decoupled weight decay of AdamW, on every parameter.
        max_grad_norm: Largest norm of the gradient, which is scaled down to it; 0: any.
        loss_normalization: What the losses are divided by; 'step': boxes and class weights of the whole optimizer
            step, so that it does not depend on how it is split; 'original': the class loss by the weights of each
            process's own batch, boxes by their mean number in a batch (accumulated batches count as a process's).
        lr_schedule: How the rates go on after the warm-up.
        lr_drop_epochs: With lr_schedule 'step': the rates fall to a tenth every so many epochs.
        lr_drop_steps: The same in optimizer steps, which then counts instead.
        warmup_steps: Optimizer steps over which the rates rise from zero.
        warmup_epochs: The same in epochs, or parts of one; only one of the two can be given.
        mixed_precision: Precision of the forward pass; none: as `accelerate launch` says, else full.
        ema_decay: Keep a moving average of the weights, which is what is evaluated and exported, with this decay, e.g.
            0.999; at first it averages over fewer steps. 0: the weights themselves.
        compile: Compile backbone, encoder and decoder with torch.compile; the first steps then take minutes.
        gradient_checkpointing: Compute activations again in the backward pass, to save memory.
        seed: Seed of weights, order, augmentation and dropout.
        encoder_supervision: Let the heads predict from every encoder token too, while training.
        denoising_groups: Groups of noised ground-truth queries in the decoder, while training.
        local_start: Begin a new model with queries that each look at one place, instead of the original's random
            start.
        eval_batch_size: Images in an evaluation batch of one process; none: batch_size.
        eval_every_epochs: Epochs between evaluations; the last is always evaluated.
        early_stopping_patience: End the run after this many evaluations without a better one; none: at its last epoch.
        checkpoint_every_epochs: Epochs between checkpoints; the last always has one.
        checkpoint_every_steps: Optimizer steps between further checkpoints.
        checkpoint_every_minutes: Minutes after which a checkpoint is written at the latest; none: not by the clock.
        keep_checkpoints: How many of the newest checkpoints are kept; that of the best model is kept besides.
        resume: 'auto': go on from the run's newest whole checkpoint, if it has one; or a checkpoint's folder.
        log_every_steps: Optimizer steps between log entries.
        trackers: Trackers of Accelerate that are written to, e.g. tensorboard,wandb,mlflow; their packages must be
            installed. The project or experiment is called as the folder above the run's, the run as its own.
        push_to_hub: Repository on the Hub, owner/name, that gets the best model at the end of the run.
        hub_private: Make that repository private if it is new.
        preflight: Before the first step, check data, boxes, evaluation and memory on at most 500 images and 30 s.
        num_images_to_log: Evaluation images drawn with predicted and true boxes; 0: none.
    """

    # What is learnt, from what, and where the run lies
    task: Task = "detection"
    data: str | None = None
    data_format: Literal["coco", "yolo", "voc", "coco_panoptic", "hf"] | None = None
    images: str | None = None
    drop_difficult: bool = False
    box_format: BoxFormat | None = None
    label_ids: Literal["dense", "raw"] = "dense"
    train_split: str | None = None
    eval_split: str | None = None
    eval_fraction: float = 0.0
    output_dir: str | None = None

    # The model
    model: str | None = None
    model_config: dict[str, Any] = field(default_factory=dict)
    head_init: Literal["by_name", "fresh"] = "by_name"
    label_mapping: dict[str, Any] = field(default_factory=dict)
    processor_config: dict[str, Any] = field(default_factory=dict)
    backbone_weights: str | None = None

    # Augmentation and batches
    transform: str = "original"
    transform_options: dict[str, Any] = field(default_factory=dict)
    no_flip_classes: list[str] = field(default_factory=list)
    batching: Literal["random", "size"] = "size"
    batch_size: int = 2
    max_pixels_per_batch: int | None = None
    gradient_accumulation_steps: int = 1
    num_workers: int = 2

    # Optimization
    epochs: int = 300
    max_steps: int | None = None
    learning_rate: float = 1e-4
    backbone_learning_rate: float = 1e-5
    scale_lr: Literal["sqrt", "linear"] | None = None
    scale_lr_from: int = 16
    freeze_detector: bool = False
    freeze: list[str] = field(default_factory=list)
    weight_decay: float = 1e-4
    max_grad_norm: float = 0.1
    loss_normalization: Literal["step", "original"] = "step"
    lr_schedule: LearningRateSchedule = "step"
    lr_drop_epochs: int = 200
    lr_drop_steps: int | None = None
    warmup_steps: int = 0
    warmup_epochs: float = 0.0
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    ema_decay: float = 0.0
    compile: bool = False
    gradient_checkpointing: bool = False
    seed: int = 42

    # What helps a DETR to learn from little; the exported model is the same network
    encoder_supervision: bool = False
    denoising_groups: int = 0
    local_start: bool = False

    # Evaluation, checkpoints, logs
    eval_batch_size: int | None = None
    eval_every_epochs: int = 1
    early_stopping_patience: int | None = None
    checkpoint_every_epochs: int = 1
    checkpoint_every_steps: int | None = None
    checkpoint_every_minutes: float | None = 30.0
    keep_checkpoints: int = 2
    resume: str | None = None
    log_every_steps: int = 10
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])
    preflight: bool = True
    num_images_to_log: int = 8
    push_to_hub: str | None = None
    hub_private: bool = False

    def __post_init__(self) -> None:
        """Checks ranges, and keys that exclude each other.

        Raises:
            ValueError: A value is out of its range or does not fit another key.
        """
        for smallest, names in _SMALLEST.items():
            for name in names:
                value = getattr(self, name)
                if value is not None and not value >= smallest:  # so written that NaN is refused
                    raise ValueError(f"{name}: got {value}; wanted at least {smallest}.")
        if self.eval_fraction >= 1:
            raise ValueError(f"eval_fraction: got {self.eval_fraction}; wanted a share below 1.")
        if self.ema_decay >= 1:
            raise ValueError(f"ema_decay: got {self.ema_decay}; wanted less than 1, such as 0.999.")
        if self.eval_split is not None and self.eval_fraction > 0:
            raise ValueError("eval_split and eval_fraction exclude each other; give one of them.")
        if self.model is not None and self.backbone_weights is not None:
            raise ValueError(
                "backbone_weights is for a new model, but model is given, which has a backbone's weights."
            )
        if self.model is not None and self.local_start:
            raise ValueError("local_start is for a new model, but model is given, whose weights are kept.")
        if self.warmup_steps > 0 and self.warmup_epochs > 0:
            raise ValueError("warmup_steps and warmup_epochs exclude each other; give one of them.")
        if self.freeze_detector:
            self._check_frozen_detector()

        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise ValueError(f"push_to_hub: got '{self.push_to_hub}'; wanted a repository on the Hub: owner/name.")
        if self.label_mapping and (self.model is None or self.head_init == "fresh"):
            raise ValueError("label_mapping is for a model to start from (--model) whose head keeps its rows by name.")
        for old, new in self.label_mapping.items():
            if not isinstance(new, str):
                raise ValueError(f"label_mapping: the class '{old}' is to become {new!r}; wanted the name of a class.")

    def _check_frozen_detector(self) -> None:
        if self.task == "detection":
            raise ValueError("freeze_detector leaves nothing to learn for the task 'detection'; give --task panoptic.")
        if self.model is None:
            raise ValueError("freeze_detector is for a detector that has learnt; give it: --model FOLDER.")
        if self.encoder_supervision or self.denoising_groups:
            raise ValueError(
                "encoder_supervision and denoising_groups help a detector to learn, but freeze_detector stops it; set "
                "them to false and 0."
            )

    @property
    def data_source(self) -> str:
        """`data`, which a run cannot do without.

        Raises:
            ValueError: It is not given.
        """
        if self.data is None:
            raise ValueError("data is not given; wanted a dataset: --data FOLDER, or 'data: FOLDER' in the YAML file.")
        return self.data

    @property
    def run_dir(self) -> Path:
        """`output_dir` as a path.

        Raises:
            ValueError: It is not given.
        """
        if self.output_dir is None:
            raise ValueError("output_dir is not given; wanted the folder for the run: --output_dir FOLDER.")
        return Path(self.output_dir)

    def to_yaml(self) -> str:
        """The whole recipe, defaults included, as YAML that `parse_recipe` reads back."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)


_TYPES: dict[str, Any] = typing.get_type_hints(Recipe)
_SMALLEST = {
    0: (
        "eval_fraction",
        "num_workers",
        "learning_rate",
        "backbone_learning_rate",
        "weight_decay",
        "max_grad_norm",
        "warmup_steps",
        "warmup_epochs",
        "ema_decay",
        "seed",
        "denoising_groups",
        "num_images_to_log",
        "checkpoint_every_minutes",
    ),
    1: (
        "batch_size",
        "max_pixels_per_batch",
        "gradient_accumulation_steps",
        "epochs",
        "max_steps",
        "lr_drop_epochs",
        "lr_drop_steps",
        "scale_lr_from",
        "eval_batch_size",
        "eval_every_epochs",
        "early_stopping_patience",
        "checkpoint_every_epochs",
        "checkpoint_every_steps",
        "keep_checkpoints",
        "log_every_steps",
    ),
}
_MAPPINGS = tuple(name for name, kind in _TYPES.items() if typing.get_origin(kind) is dict)


def parse_recipe(arguments: Sequence[str], program: str = "detr train", *, notes: list[str] | None = None) -> Recipe:
    """Reads a recipe from command line arguments: a YAML file, if any, and `--key value` pairs, which win over it.

    Mappings are set key by key (`--model_config.num_queries 50`). Values are YAML: `1e-4`, `true`, `[480, 512]`.

    A file that describes a new model serves to train a given one too: with `--model` on the command line, and none in
    the file, the file's model_config, backbone_weights and local_start are left out.

    Args:
        arguments: The arguments after the name of the command.
        program: Name of the command in `--help`.
        notes: A list to which a sentence is added for each key that is left out.

    Raises:
        ValueError: A key is unknown (the nearest is named), or a value has the wrong type or is out of range.
        FileNotFoundError: The YAML file does not exist.
    """
    parser = _argument_parser(program, arguments)
    given, unknown = parser.parse_known_args(list(arguments))
    for token in unknown:
        if token.startswith("-"):
            raise ValueError(f"command line: {_unknown_key(token.lstrip('-').split('=')[0])}")
    if unknown:
        raise ValueError(f"command line: '{unknown[0]}' belongs to no key; wanted one YAML file and --key value.")
    from_command_line = vars(given)
    config_path = from_command_line.pop("config")
    values = read_recipe_file(config_path) if config_path is not None else {}
    model = from_command_line.get("model", "none")
    if values.get("model") is None and _from_text("model", model, _TYPES["model"]) is not None:
        left_out = _drop_keys_of_new_models(values, model)
        if notes is not None:
            notes += left_out
    for name, text in from_command_line.items():
        mapping, _, inner = name.partition(".")
        if inner:
            values[mapping] = _merged(values.get(mapping, {}), inner, _from_text(name, text, Any))
        else:
            values[name] = _from_text(name, text, _TYPES[name])
    if values.get("output_dir") is None and config_path is not None:
        values["output_dir"] = str(Path("runs", Path(config_path).stem))
    return Recipe(**values)


def _drop_keys_of_new_models(values: dict[str, Any], model: str) -> list[str]:
    """Takes out of a file's keys those that describe a new model; returns a sentence for each that said anything."""
    dropped = {name: values.pop(name) for name in _KEYS_OF_NEW_MODELS if name in values}
    return [
        f"{name} of the YAML file is left out: it is for a new model, and that of {model} has its own"
        for name, value in dropped.items()
        if value  # {}, none and false say nothing
    ]


def read_recipe_file(path: str | Path) -> dict[str, Any]:
    """The keys that a YAML file sets, typed and checked, without the defaults of the others.

    Raises:
        ValueError: It is no YAML mapping, or a key is unknown, twice there, or has a value of the wrong type.
        FileNotFoundError: The file does not exist.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such recipe; wanted a YAML file such as configs/shapes.yaml.")
    try:
        loaded = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_RecipeLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from error
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ValueError(f"{path}: got a {type(loaded).__name__}; wanted lines of 'key: value'.")
    values = {}
    for name, value in loaded.items():
        if name not in _TYPES:
            raise ValueError(f"{path}: {_unknown_key(str(name))}")
        values[name] = _typed(f"{path}: {name}", value, _TYPES[name])
    return values


def nearest_name(name: str, known: Sequence[str]) -> str:
    """`; did you mean '…'?` with the known name nearest to `name`, or what there is to choose from."""
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean '{nearest[0]}'?" if nearest else f"; the known ones are: {', '.join(known)}."


def _unknown_key(name: str) -> str:
    mapping, _, inner = name.partition(".")
    if inner and mapping in _TYPES:
        return f"key '{mapping}' holds one value, so '{name}' cannot be set; only {', '.join(_MAPPINGS)} have keys."
    return f"unknown key '{name}'{nearest_name(name.replace('-', '_'), list(_TYPES))}"


def _merged(mapping: Any, dotted: str, value: object) -> dict[str, Any]:
    """`mapping` with the key `dotted` (`a.b`: key `b` of the mapping `a`) set to `value`."""
    first, _, rest = dotted.partition(".")
    mapping = mapping if isinstance(mapping, dict) else {}
    return {**mapping, first: _merged(mapping.get(first), rest, value) if rest else value}


# Values and their types


class _RecipeLoader(yaml.SafeLoader):
    """Safe YAML with YAML 1.2's numbers and booleans (`1e-4` is a number, `no` a word); repeated keys are errors."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Builds a mapping whose keys are all different."""
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is there twice", node.start_mark)
        return super().construct_mapping(node, deep=deep)


_RecipeLoader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag in ("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
):
    _RecipeLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _from_text(name: str, text: str, wanted: Any) -> Any:
    """The value of a key that was given as text on the command line."""
    where = f"--{name}"
    options = _union_members(wanted)
    if types.NoneType in options and text.lower() in ("none", "null", "~"):
        return None
    if str in options:
        return text
    if wanted == list[str] and not text.startswith("["):
        return [item.strip() for item in text.split(",") if item.strip()]  # a glob's * would be something else in YAML
    if typing.get_origin(wanted) is list and not text.startswith("["):
        text = f"[{text}]"
    try:
        value = yaml.load(text, Loader=_RecipeLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: got '{text}', which is no YAML; wanted {_type_name(wanted)}.") from error
    return _typed(where, value, wanted)


def _union_members(wanted: Any) -> tuple[Any, ...]:
    return typing.get_args(wanted) if typing.get_origin(wanted) in (types.UnionType, typing.Union) else (wanted,)


def _typed(where: str, value: Any, wanted: Any) -> Any:
    """`value` if it is of the type `wanted`, an integer as a float where that is wanted.

    Raises:
        ValueError: It is not; the message says where, what it got and what was wanted.
    """
    for option in _union_members(wanted):
        if option is Any or (option is types.NoneType and value is None):
            return value
        origin, members = typing.get_origin(option), typing.get_args(option)
        if origin is Literal and isinstance(value, str) and value in members:
            return value
        if origin is list and isinstance(value, list):
            return [_typed(f"{where}[{position}]", item, members[0]) for position, item in enumerate(value)]
        if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if origin is None and type(value) is option:
            return value
    raise ValueError(f"{where}: got {value!r} ({type(value).__name__}); wanted {_type_name(wanted)}.")


def _type_name(wanted: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", types.NoneType: "none"}
    words = []
    for option in _union_members(wanted):
        if typing.get_origin(option) is Literal:
            words += [f"'{member}'" for member in typing.get_args(option)]
        elif typing.get_origin(option) is list:
            words.append("a list")
        elif typing.get_origin(option) is dict:
            words.append("keys with values")
        else:
            words.append(names[option])
    return " or ".join(words)


# The command line


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, for the command to show in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises what argparse has to say."""
        raise ValueError(f"command line: {message}")


def _argument_parser(program: str, arguments: Sequence[str]) -> _Parser:
    """A parser that knows every key of the recipe, and those keys of mappings that occur in `arguments`."""
    parser = _Parser(
        prog=program,
        description="Trains a DETR as a recipe says. Every key can be set here too, and wins over the file.",
        epilog="Mappings are set key by key: --model_config.num_queries 50. Values are written as in YAML. "
        "detr train --replay FILE runs a step again whose loss was not finite, and says what it came from.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("config", nargs="?", default=None, help="the recipe, a YAML file such as configs/shapes.yaml")
    explanations, defaults = _explanations(), dataclasses.asdict(Recipe())
    for name, wanted in _TYPES.items():
        explanation = _help(name, explanations, defaults[name])
        if name in _MAPPINGS:
            parser.add_argument(f"--{name}.KEY", dest=argparse.SUPPRESS, metavar="VALUE", help=explanation)
            parser.add_argument(f"--{name}", metavar="{KEY: VALUE}", help=argparse.SUPPRESS)
        elif wanted is bool:
            parser.add_argument(f"--{name}", nargs="?", const="true", metavar="BOOL", help=explanation)
        else:
            parser.add_argument(f"--{name}", metavar=_metavar(wanted), help=explanation)
    inner_keys = {token[2:].split("=")[0] for token in arguments if re.match(rf"--({'|'.join(_MAPPINGS)})\.\w", token)}
    for name in sorted(inner_keys):
        parser.add_argument(f"--{name}", dest=name, help=argparse.SUPPRESS)
    return parser


def _metavar(wanted: Any) -> str:
    for option in _union_members(wanted):
        if typing.get_origin(option) is Literal:
            return "{" + ",".join(typing.get_args(option)) + "}"
        if typing.get_origin(option) is list:
            return "A,B"
    kind = _union_members(wanted)[0]
    return {int: "N", float: "X", str: "TEXT"}[kind]


def _help(name: str, explanations: Mapping[str, str], default: object) -> str:
    if isinstance(default, list):
        shown = ",".join(default)
    elif default is None or isinstance(default, bool):
        shown = str(default).lower()
    else:
        shown = "no keys" if default == {} else str(default)
    return f"{explanations.get(name, '')} (default: {shown})".replace("%", "%%")


def _explanations() -> dict[str, str]:
    """What the docstring of `Recipe` says of each key."""
    attributes = (inspect.getdoc(Recipe) or "").partition("Attributes:")[2]
    entries = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", attributes, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}


def differing_keys(recipe: Recipe, other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The keys in which `other` (a recipe as a mapping) differs from `recipe`: name → (here, there)."""
    mine = dataclasses.asdict(recipe)
    return {name: (mine[name], other[name]) for name in mine if name in other and mine[name] != other[name]}
