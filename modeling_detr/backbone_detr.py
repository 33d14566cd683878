"""The backbone: a timm feature extractor, what of it is frozen, its ImageNet weights, and the positions of its cells.

Shapes: B images · D width · H, W pixels · h, w feature cells.
"""

import contextlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import timm
import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from transformers import initialization as init

from .configuration_detr import DetrConfig


class FrozenBatchNorm2d(nn.Module):
    """Batch norm with fixed statistics and scale, all buffers, so that nothing of it ever trains.

    Original: models/backbone.py, `FrozenBatchNorm2d`. Differs from the original: one fused kernel instead of two
    passes over the feature map, and timm's batch norms that carry their activation are frozen too.

    Args:
        norm: The batch norm whose weights and statistics are taken over.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
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

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) → the same shape."""
        normed = F.batch_norm(
            features, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )
        return cast(Tensor, self.act(self.drop(normed)))

    def reset_weights(self) -> None:
        """Scale 1, shift 0, mean 0 and variance 1."""
        for tensor, fill in (
            (self.weight, init.ones_),
            (self.bias, init.zeros_),
            (self.running_mean, init.zeros_),
            (self.running_var, init.ones_),
        ):
            fill(tensor)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.pop(f"{prefix}num_batches_tracked", None)  # a counter that only training uses
        super()._load_from_state_dict(state_dict, prefix, *args)


def freeze_batch_norms(module: nn.Module) -> None:
    """Replaces every batch norm under `module` by a `FrozenBatchNorm2d` with the same numbers."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child))
        else:
            freeze_batch_norms(child)


def create_timm_backbone(config: DetrConfig, **overrides: Any) -> nn.Module:
    """The timm feature extractor that `config` names, with random weights unless `overrides` say `pretrained=True`.

    Raises:
        ValueError: timm has no such model, it offers no feature maps, or it does not take the arguments.
    """
    arguments: dict[str, Any] = {
        "pretrained": False,
        "features_only": True,
        "in_chans": config.num_channels,
        "out_indices": tuple(config.out_indices) if config.out_indices is not None else (-1,),
        **({"output_stride": 16} if config.dilation else {}),
        **(config.backbone_kwargs or {}),
    }
    try:
        backbone = timm.create_model(**{"model_name": config.backbone, **arguments, **overrides})
    except (RuntimeError, TypeError, AttributeError, AssertionError, ValueError, LookupError) as error:
        raise ValueError(
            f"timm cannot build the backbone '{overrides.get('model_name', config.backbone)}' with {arguments}: "
            f"{error}. Wanted a timm model that offers features_only, and arguments that it takes "
            f"(config keys backbone, backbone_kwargs, out_indices, dilation)."
        ) from error
    _drop_unused_stages(backbone)
    return backbone


@contextlib.contextmanager
def _missing_keys() -> Iterator[list[str]]:
    """The parameters that timm does not find while it loads weights; it only logs their names and goes on.

    What it says of surplus weights (a classifier's, left out on purpose) is kept from the screen.
    """
    said: list[str] = []

    def listen(record: logging.LogRecord) -> bool:
        if match := re.match(r"Missing keys \((.*?)\)", record.getMessage()):
            said.extend(match[1].split(", "))
        return record.levelno > logging.WARNING

    timm_logger = logging.getLogger("timm.models._builder")
    level = timm_logger.level
    timm_logger.setLevel(logging.INFO)
    timm_logger.addFilter(listen)
    try:
        yield said
    finally:
        timm_logger.removeFilter(listen)
        timm_logger.setLevel(level)


def _drop_unused_stages(backbone: nn.Module) -> None:
    """Cuts what lies behind the deepest requested map; timm does so itself for all but its EfficientNet family.

    There, the stages behind it would be computed for nothing, and their weights never get a gradient.
    """
    deepest: str = backbone.feature_info.module_name()[-1]  # type: ignore[union-attr, operator]
    parent, _, index = deepest.rpartition(".")
    stages = getattr(backbone, parent, None) if parent else None
    if isinstance(stages, nn.Sequential) and index.isdigit():
        setattr(backbone, parent, stages[: int(index) + 1])


class DetrConvEncoder(nn.Module):
    """The backbone: a timm feature extractor whose deepest requested map feeds the transformer.

    Original: models/backbone.py. Batch norms are frozen, and so is everything up to and including the stride-4 map,
    as the config says.

    Args:
        config: Its `backbone…`, `out_indices`, `dilation` and `freeze_…` keys are read.
    """

    def __init__(self, config: DetrConfig) -> None:
        super().__init__()
        self.config = config
        self.model = create_timm_backbone(config)
        if config.freeze_batch_norm:
            freeze_batch_norms(self.model)
        self.stem_is_frozen = config.freeze_backbone_stem
        self.freeze_stem()
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if tensor.device.type != "meta":  # timm has filled it: `post_init` must leave it as it is
                tensor._is_hf_initialized = True  # type: ignore[attr-defined]
        info = self.model.feature_info
        self.channels: list[int] = info.channels()  # type: ignore[union-attr, operator]
        self.strides: list[int] = info.reduction()  # type: ignore[union-attr, operator]

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → one (B, channels, h, w) feature map for each of `out_indices`."""
        features: list[Tensor] = self.model(pixel_values)
        if str(getattr(self.model, "output_fmt", "NCHW")).endswith("NHWC"):
            features = [feature.permute(0, 3, 1, 2) for feature in features]
        return features

    def freeze_stem(self) -> None:
        """No gradient for what lies, in the order of the network, up to the last map of stride 4 or less."""
        if not self.stem_is_frozen:
            return
        stages = [stage["module"] for stage in self.model.feature_info.info if stage["reduction"] <= 4]  # type: ignore
        if not stages:  # a plain vision transformer begins at stride 16: it has no such stem
            return
        prefixes = tuple(form + "." for form in (stages[-1], stages[-1].replace(".", "_")))
        names = [name for name, _ in self.model.named_parameters()]
        in_stage = [position for position, name in enumerate(names) if name.startswith(prefixes)]
        if not in_stage:
            raise ValueError(
                f"The stem of this backbone cannot be told from its parameter names (looked for '{prefixes[0]}…'): "
                f"set freeze_backbone_stem=False and freeze what you want by hand."
            )
        for name, parameter in self.model.named_parameters():
            if name in names[: in_stage[-1] + 1]:
                parameter.requires_grad_(False)

    def load_weights(self, source: str | Path) -> None:
        """Replaces the weights by pretrained ones; see `DetrModel.load_backbone_weights`."""
        path = Path(source)
        if path.is_file():
            overrides: dict[str, Any] = {"pretrained_cfg_overlay": {"file": str(path)}}
        elif path.suffix in (".safetensors", ".pth", ".pt", ".bin") or path.is_dir():
            raise FileNotFoundError(f"{source}: no such file of backbone weights.")
        else:
            overrides = {"model_name": str(source).removeprefix("hf-hub:").removeprefix("timm/")}
        try:
            with _missing_keys() as missing:
                pretrained = create_timm_backbone(self.config, pretrained=True, **overrides)
        except Exception as error:  # timm raises whatever its reader or its download does
            raise ValueError(
                f"{source}: cannot load weights for the backbone '{self.config.backbone}' ({error}). Wanted a file "
                f"with that architecture's weights in timm's names, or a timm model name whose weights can be "
                f"downloaded from here."
            ) from error
        needed = {name.replace(".", "_") for name in pretrained.state_dict()}  # timm flattens some names for features
        lacking = [name for name in missing if name.replace(".", "_") in needed]
        if lacking:
            raise ValueError(
                f"{source}: not the weights of the backbone '{self.config.backbone}' in timm's names; it lacks "
                f"{len(lacking)} of {len(needed)}, first '{lacking[0]}'."
            )
        if self.config.freeze_batch_norm:
            freeze_batch_norms(pretrained)
        try:
            self.model.load_state_dict(pretrained.state_dict())
        except RuntimeError as error:
            raise ValueError(f"{source}: not weights of the backbone '{self.config.backbone}': {error}") from error


# Positions


class DetrSinePositionEmbedding(nn.Module):
    """Sines and cosines of a cell's row and column, counted over the unpadded image and scaled to 2π.

    Paper: app. A.4. Original: models/position_encoding.py, `PositionEmbeddingSine`.

    Args:
        width: D, the width of the embedding; half for rows, half for columns.
        temperature: Ratio of the longest to the shortest wave length.
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
    """Positions (…) in [0, 1] → (…, width): sines and cosines, interleaved, of the position times 2π, ever slower."""
    channel = torch.arange(width, dtype=torch.float32, device=positions.device)
    wave_length = temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    angles = (positions * 2 * torch.pi)[..., None] / wave_length
    return torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)


class PositionTable(nn.Embedding):
    """An embedding that starts uniform in [0, 1)."""

    def reset_weights(self) -> None:
        """Draws the table."""
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
        """(B, h, w) bool → (B, h, w, D); padding plays no part.

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
        rows, columns = self.row_embeddings.weight[:height], self.column_embeddings.weight[:width]
        grid_positions = torch.cat(
            [columns[None].expand(height, -1, -1), rows[:, None].expand(-1, width, -1)], dim=-1
        )  # (h, w, D)
        return grid_positions.expand(batch, -1, -1, -1)


class DetrBackbone(nn.Module):
    """Feature maps and the positions of their cells.

    The position embedding lies beside the convolutions, as in the original: a learned one trains at the backbone's
    rate.

    Args:
        config: See `DetrConvEncoder`; `position_embedding_type`, `d_model` and `learned_position_grid`.
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
            feature_mask = F.interpolate(pixel_mask[:, None].float(), size=(height, width))[:, 0].bool()
        return features, feature_mask, self.position_embedding(feature_mask)
