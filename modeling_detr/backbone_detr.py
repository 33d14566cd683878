"""The backbone: a timm feature extractor, its frozen parts, its ImageNet weights, and the positions of its cells.

Shapes: B images · D width · H, W pixels · h, w feature cells.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.import_utils import is_tracing

from .configuration_detr import DetrConfig, check_backbone
from .errors_detr import ModelError, did_you_mean
from .folding_detr import InferenceCopies, NormPair, fold_when_training


_MOST_BACKBONE_WEIGHTS = 10_000_000_000


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics, scale and shift. All are buffers, so none of them ever trains.

    Original: models/backbone.py, `FrozenBatchNorm2d`. Differs from the original: one fused kernel instead of two
    passes over the feature map, none at all in training if it follows a convolution, and timm's batch norms with a
    built-in activation are frozen too.

    Args:
        norm: The batch norm whose weights and statistics are copied.

    Attributes:
        pair: The norm and the convolution before it, which computes both in training; None if there is none.

    Raises:
        ValueError: The batch norm has no running statistics.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.pair: NormPair | None = None
        self.eps = norm.eps
        self.drop = norm.drop if isinstance(norm, BatchNormAct2d) else nn.Identity()
        self.act = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()
        running_mean, running_var = norm.running_mean, norm.running_var
        if running_mean is None or running_var is None:
            raise ValueError("A batch norm without running statistics cannot be frozen; set freeze_batch_norm=False.")
        ones, zeros = torch.ones_like(running_var), torch.zeros_like(running_mean)
        self.register_buffer("weight", ones if norm.weight is None else norm.weight.detach().clone())
        self.register_buffer("bias", zeros if norm.bias is None else norm.bias.detach().clone())
        self.register_buffer("running_mean", running_mean.clone())
        self.register_buffer("running_var", running_var.clone())

    def reset_weights(self) -> None:
        """Sets scale 1, shift 0, mean 0 and variance 1."""
        init.ones_(self.weight)
        init.zeros_(self.bias)
        init.zeros_(self.running_mean)
        init.ones_(self.running_var)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) → the same shape."""
        if self.pair is not None and self.pair.is_folded:
            normed = features
        else:
            normed = F.batch_norm(
                features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
            )
        output: Tensor = self.act(self.drop(normed))
        return output

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # a counter that only training uses
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_batch_norms(module: nn.Module) -> None:
    """Replaces every batch norm in `module` by a `FrozenBatchNorm2d` with the same weights and statistics."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child))
        else:
            freeze_batch_norms(child)


def create_timm_backbone(config: DetrConfig, **overrides: Any) -> nn.Module:
    """Builds the config's timm feature extractor, with random weights unless `overrides` has `pretrained=True`.

    Args:
        config: The `backbone…`, `out_indices`, `num_channels` and `dilation` keys are read.
        **overrides: Arguments of `timm.create_model` that take precedence over the config.

    Raises:
        ValueError: timm has no such model, the model has no feature maps, it does not accept the arguments, or they
            are not those of an architecture.
    """
    check_backbone(config.backbone, config.backbone_kwargs)  # once more: it may have changed since it was built
    arguments: dict[str, Any] = {
        "pretrained": False,
        "features_only": True,
        "in_chans": config.num_channels,
        "out_indices": tuple(config.out_indices) if config.out_indices is not None else (-1,),
        **({"output_stride": 16} if config.dilation else {}),
        **(config.backbone_kwargs or {}),
    }
    try:
        if config.backbone_kwargs:  # how large is it? Without memory, because the numbers may be absurd
            with torch.device("meta"):
                _check_weights(timm.create_model(config.backbone, **{**arguments, "pretrained": False}))
        backbone = timm.create_model(**{"model_name": config.backbone, **arguments, **overrides})
    except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError, LookupError) as error:
        name = str(overrides.get("model_name", config.backbone)).split(".")[0]
        if not timm.is_model(name):
            raise ModelError(f"timm has no model {name!r}; {did_you_mean(name, timm.list_models())}") from error
        raise ValueError(
            f"timm cannot build the backbone {overrides.get('model_name', config.backbone)!r} with {arguments}: "
            f"{_first_lines(error)}. Expected a timm model that supports features_only, and arguments that it accepts "
            f"(config keys backbone, backbone_kwargs, out_indices, dilation)."
        ) from error
    _drop_unused_stages(backbone)
    return backbone


def _check_weights(backbone: nn.Module) -> None:
    """Raises a ValueError if a backbone is larger than any that exists."""
    count = sum(parameter.numel() for parameter in backbone.parameters())
    if count > _MOST_BACKBONE_WEIGHTS:
        raise ValueError(f"it would have {count:,} weights, expected at most {_MOST_BACKBONE_WEIGHTS:,}")


def _first_lines(error: BaseException, most: int = 2) -> str:
    """The first lines of an error's message; PyTorch lists every parameter that does not match."""
    lines = [line.strip().removesuffix(".") for line in str(error).splitlines()]
    return " ".join(lines[:most]) + (f" … and {len(lines) - most} more lines" if len(lines) > most else "")


def _drop_unused_stages(backbone: nn.Module) -> None:
    """Cuts the stages behind the deepest requested map; timm does this itself for all but its EfficientNet family.

    They would be computed for nothing, and their weights would never get a gradient.
    """
    deepest: str = backbone.feature_info.module_name()[-1]  # type: ignore[union-attr, operator]
    parent, _, index = deepest.rpartition(".")
    stages = getattr(backbone, parent, None) if parent else None
    if isinstance(stages, nn.Sequential) and index.isdigit():
        setattr(backbone, parent, stages[: int(index) + 1])


def is_weights_file(source: str | Path) -> bool:
    """Whether backbone weights are a file, by its existence or its suffix, and not the name of a timm model."""
    return Path(source).is_file() or Path(source).suffix in (".safetensors", ".pth", ".pt", ".bin")


def _is_readable(path: Path) -> bool:
    """Whether a file can be read as weights, without running code from it."""
    try:
        timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception:  # the readers raise whatever the content leads to
        return False
    return True


def load_pretrained_backbone(config: DetrConfig, source: str | Path) -> nn.Module:
    """Builds the config's timm feature extractor with pretrained weights.

    Args:
        config: See `create_timm_backbone`.
        source: See `DetrModel.load_backbone_weights`.

    Raises:
        FileNotFoundError: `source` looks like a file, but does not exist.
        ValueError: The weights belong to another architecture, or cannot be read or downloaded.
    """
    path = Path(source)
    if path.is_file():
        overrides: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(path)}}
    elif is_weights_file(source) or path.is_dir():
        raise FileNotFoundError(
            f"backbone_weights: {source}: no such file; check the path, or give the name of a timm model, such as "
            f"resnet50.tv_in1k."
        )
    else:
        overrides = {"model_name": str(source).removeprefix("hf-hub:").removeprefix("timm/")}
    try:
        with _missing_keys() as missing:
            backbone = create_timm_backbone(config, pretrained=True, **overrides)
    except Exception as error:  # timm raises whatever its reader or its download raises
        if isinstance(error, ModelError):
            raise
        if path.is_file() and not _is_readable(path):
            remedy = "give a .safetensors or .pth file with a state dict"
            raise ModelError(f"backbone_weights: {source}", "not a weights file, or damaged", remedy) from error
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError):
            problem = "cannot be downloaded (no connection)"
            remedy = "download its model.safetensors on another machine and pass the file"
            settings = {"backbone_weights": "./model.safetensors"}
            raise ModelError(f"backbone_weights: {source}", problem, remedy, settings) from error
        raise ValueError(
            f"{source}: cannot load weights of the backbone {config.backbone!r} "
            f"({_first_lines(error.__cause__ or error)}). Expected a file with that "
            f"architecture's weights under timm's names, or a timm model name whose weights can be downloaded."
        ) from error
    needed = {name.replace(".", "_") for name in backbone.state_dict()}  # timm flattens some names for features
    lacking = [name for name in missing if name.replace(".", "_") in needed]
    if lacking:
        raise ValueError(
            f"{source}: not weights of the backbone {config.backbone!r} under timm's names; {len(lacking)} of "
            f"{len(needed)} are missing, the first is {lacking[0]!r}."
        )
    return backbone


@contextlib.contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """Collects the names of parameters that timm misses while it loads weights, which it only logs.

    Its messages about surplus weights (the classifier, left out on purpose) are suppressed.
    """
    missing: list[str] = []

    def collect(record: logging.LogRecord) -> bool:
        if match := re.match(r"Missing keys \((.*?)\)", record.getMessage()):
            missing.extend(match[1].split(", "))
        return record.levelno > logging.WARNING

    timm_logger = logging.getLogger("timm.models._builder")
    level = timm_logger.level
    timm_logger.setLevel(logging.INFO)
    timm_logger.addFilter(collect)
    try:
        yield missing
    finally:
        timm_logger.removeFilter(collect)
        timm_logger.setLevel(level)


class DetrConvEncoder(nn.Module):
    """The timm feature extractor. Its deepest requested map feeds the transformer.

    Original: models/backbone.py. Depending on the config, batch norms and everything up to and including the stride-4
    map are frozen.

    Args:
        config: The `backbone…`, `out_indices`, `num_channels`, `dilation` and `freeze_…` keys are read.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config
        self.model = create_timm_backbone(config)
        self.copies = InferenceCopies(FrozenBatchNorm2d)
        if config.freeze_batch_norm:
            freeze_batch_norms(self.model)
            fold_when_training(self.model, FrozenBatchNorm2d, config.num_channels)
        self.freeze_stem()
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if tensor.device.type != "meta":  # timm has initialised it: `post_init` must not do so again
                tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        info = self.model.feature_info
        self.channels: list[int] = info.channels()  # type: ignore[union-attr, operator]
        self.strides: list[int] = info.reduction()  # type: ignore[union-attr, operator]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → one (B, channels, h, w) feature map for each of `out_indices`."""
        backbone = self.model if is_tracing(pixel_values) else self.copies.select(self.model, pixel_values)
        if self.training and pixel_values.device.type == "cpu":
            # A fifth less time for a step with a small backbone, and none lost with a ResNet-50; other rounding.
            pixel_values = pixel_values.contiguous(memory_format=torch.channels_last)
        features: list[Tensor] = backbone(pixel_values)
        if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC"):
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return features

    def train(self, mode: bool = True) -> "DetrConvEncoder":
        """See `nn.Module.train`. A model that trains keeps no copies for predicting."""
        if mode:
            self.copies.clear()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> "DetrConvEncoder":
        self.copies.clear()  # of weights that are about to move
        super()._apply(*args, **kwargs)
        return self

    def freeze_stem(self) -> None:
        """Freezes all layers up to the last map of stride 4 or less, if the config says so.

        Raises:
            ValueError: The stem's parameters cannot be identified by their names.
        """
        if not self.config.freeze_backbone_stem:
            return
        stages = [stage["module"] for stage in self.model.feature_info.info if stage["reduction"] <= 4]  # type: ignore
        if not stages:  # a plain vision transformer starts at stride 16 and has no such stem
            return
        prefixes = tuple(form + "." for form in (stages[-1], stages[-1].replace(".", "_")))
        names = [name for name, _ in self.model.named_parameters()]
        in_stage = [index for index, name in enumerate(names) if name.startswith(prefixes)]
        if not in_stage:
            raise ValueError(
                f"freeze_backbone_stem: no parameter of this backbone starts with {prefixes[0]!r}, so its stem cannot "
                f"be identified; set freeze_backbone_stem=False and freeze layers by hand."
            )
        stem = set(names[: in_stage[-1] + 1])
        for name, parameter in self.model.named_parameters():
            if name in stem:
                parameter.requires_grad_(False)

    def load_weights(self, source: str | Path) -> None:
        """Replaces the weights by pretrained ones; see `DetrModel.load_backbone_weights`."""
        pretrained = load_pretrained_backbone(self.config, source)
        if self.config.freeze_batch_norm:
            freeze_batch_norms(pretrained)
        try:
            self.model.load_state_dict(pretrained.state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"{source}: not weights of the backbone '{self.config.backbone}' ({_first_lines(error)})."
            ) from error


def sample_mask(pixel_mask: Tensor, height: int, width: int) -> Tensor:
    """The pixel mask (B, H, W) at the cells of a feature map → (B, height, width) bool.

    Equal to `F.interpolate(…, mode="nearest")`, which the original uses. But runtimes of exported models round the
    position of a cell in another way than PyTorch, and so take some cells of padding for a part of the image.
    """
    rows, columns = (
        (torch.arange(cells, dtype=torch.float32, device=pixel_mask.device) * (pixels / cells)).long()
        for cells, pixels in ((height, pixel_mask.shape[1]), (width, pixel_mask.shape[2]))
    )
    return pixel_mask.bool()[:, rows][:, :, columns]


# Positions


class DetrSinePositionEmbedding(nn.Module):
    """Sines and cosines of a cell's row and column, counted over the unpadded image and scaled to 2π.

    Paper: app. A.4. Original: models/position_encoding.py, `PositionEmbeddingSine`.

    Args:
        width: D, the width of the embedding; half for rows, half for columns.
        temperature: Ratio of the longest to the shortest wavelength.
    """

    def __init__(self, width: int, temperature: float) -> None:
        super().__init__()
        self.width = width
        self.temperature = temperature

    def forward(self, feature_mask: Tensor) -> Tensor:
        """(B, h, w) bool, True = image → (B, h, w, D) float32."""
        rows, columns = (feature_mask.cumsum(axis, dtype=torch.float32) for axis in (1, 2))
        x = columns / (columns[:, :, -1:] + 1e-6)
        y = rows / (rows[:, -1:, :] + 1e-6)
        return sine_position(torch.stack([x, y], dim=-1), self.width, self.temperature)


def sine_position(points: Tensor, width: int, temperature: float) -> Tensor:
    """Points (…, 2) as (x, y) in [0, 1] → (…, width): the embedding of y, then that of x."""
    return sine_embedding(points.flip(-1), width // 2, temperature).flatten(-2)


def sine_embedding(positions: Tensor, width: int, temperature: float) -> Tensor:
    """Positions (…) in [0, 1] → (…, width): interleaved sines and cosines of 2π·position at decreasing frequencies."""
    channel = torch.arange(width, dtype=torch.float32, device=positions.device)
    wavelength = temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    angles = (positions * 2 * torch.pi)[..., None] / wavelength
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


class PositionTable(nn.Embedding):
    """An embedding that is initialised uniformly in [0, 1)."""

    def reset_weights(self) -> None:
        """Draws new weights."""
        init.uniform_(self.weight)


class DetrLearnedPositionEmbedding(nn.Module):
    """A learned vector for every row and every column.

    Original: models/position_encoding.py, `PositionEmbeddingLearned`. Differs from the original: a feature map larger
    than the table is a clear error instead of an index error.

    Args:
        width: D; half for columns, half for rows.
        grid: Rows and columns of the table.
    """

    def __init__(self, width: int, grid: int) -> None:
        super().__init__()
        self.row_embeddings = PositionTable(grid, width // 2)
        self.column_embeddings = PositionTable(grid, width // 2)

    def forward(self, feature_mask: Tensor) -> Tensor:
        """(B, h, w) bool → (B, h, w, D); independent of padding.

        Raises:
            ValueError: The feature map has more rows or columns than the table.
        """
        batch, height, width = feature_mask.shape
        grid = self.row_embeddings.num_embeddings
        if max(height, width) > grid:
            raise ValueError(
                f"The feature map has {height} x {width} cells, but the learned position table has {grid} x {grid}; "
                f"set learned_position_grid to at least {max(height, width)}, use smaller images, or sine positions."
            )
        rows = self.row_embeddings(torch.arange(height, device=feature_mask.device))
        columns = self.column_embeddings(torch.arange(width, device=feature_mask.device))
        grid_positions = torch.cat(
            [columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1
        )  # (h, w, D)
        return grid_positions.expand(batch, -1, -1, -1)


class DetrBackbone(nn.Module):
    """Feature maps and the positions of their cells.

    As in the original, the position embedding belongs to the backbone: a learned one trains at the backbone's learning
    rate.

    Args:
        config: See `DetrConvEncoder`; also `d_model` and the `…position…` keys are read.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.conv_encoder = DetrConvEncoder(config)
        self.position_embedding: nn.Module
        if config.position_embedding_type == "sine":
            self.position_embedding = DetrSinePositionEmbedding(config.d_model, float(config.position_temperature))
        else:
            self.position_embedding = DetrLearnedPositionEmbedding(config.d_model, config.learned_position_grid)

    def forward(self, pixel_values: Tensor, pixel_mask: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor]:
        """Feature maps, the deepest one's mask (B, h, w) bool (True = image) and its positions (B, h, w, D)."""
        features = self.conv_encoder(pixel_values)
        batch, _, height, width = features[-1].shape
        if pixel_mask is None:
            feature_mask = torch.ones(batch, height, width, dtype=torch.bool, device=pixel_values.device)
        else:
            feature_mask = sample_mask(pixel_mask, height, width)
        return features, feature_mask, self.position_embedding(feature_mask)
