"""Batch norms folded into the convolutions before them, which takes less time and memory.

A batch norm that computes with stored statistics multiplies each channel by a constant and adds another, and the
convolution before it can do both.

For predicting on the CPU, a copy of the backbone is folded, and computes channels last. It exists beside the backbone,
whose weights, names and `state_dict` stay as they are; it is made when it is first needed, and again when a weight has
changed. In training, convolutions scale their weights in every step: see `ConvolutionBeforeNorm`.

Shapes: B images · H, W pixels.
"""

import copy
import operator
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame, conv2d_same
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from torch.utils._pytree import tree_leaves


# Fewer pixels are computed before a copy could be made
FEWEST_PIXELS = 128 * 128

# The largest difference that a copy may show on a probe, relative to the largest value of a map. Rounding differs by
# about 5e-6; a norm that does not follow the convolution it was folded into, by about 1.
_PROBE_TOLERANCE = 1e-4
_PROBE_SIZE = (1, 64, 96)
_SAMPLES = 64  # values of each weight that are compared before a copy is used


class InferenceCopies:
    """The copies of one backbone, one for each precision that convolutions compute in.

    They are dropped when the backbone trains or moves, and neither copied nor pickled with it. Threads may share them.

    Args:
        frozen_norm: Class of batch norms that compute with their statistics in any mode.

    Attributes:
        folded: Precision → copy, or None if the backbone cannot be copied.
    """

    def __init__(self, frozen_norm: type[nn.Module]) -> None:
        self._norm_types = (nn.BatchNorm2d, BatchNormAct2d, frozen_norm)
        self._lock = threading.Lock()
        self._snapshot: _Snapshot | None = None
        self.folded: dict[torch.dtype, nn.Module | None] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "InferenceCopies":
        return InferenceCopies(self._norm_types[-1])

    def __reduce__(self) -> tuple[Any, ...]:
        return InferenceCopies, (self._norm_types[-1],)

    def clear(self) -> None:
        """Drops the copies."""
        with self._lock:
            self._snapshot, self.folded = None, {}

    def select(self, backbone: nn.Module, pixel_values: Tensor) -> nn.Module:
        """Returns what to call: a copy that computes the same faster, or `backbone` itself.

        A copy is returned only in evaluation mode, on the CPU, in float32 or under autocast, where nothing needs
        gradients and nobody watches the layers (hooks, tracing, transforms), and for `FEWEST_PIXELS` at least.

        Args:
            backbone: A module from images to a list of feature maps.
            pixel_values: (B, channels, H, W), the images it will be called with.
        """
        if _num_pixels(pixel_values) < FEWEST_PIXELS:
            return backbone
        if not _is_plain(pixel_values) or _is_watched() or _needs_gradients(backbone, pixel_values):
            return backbone
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        with self._lock:
            if self._snapshot is None or not self._snapshot.is_current(backbone):
                self._snapshot, self.folded = _Snapshot.of(backbone), {}
            if self._snapshot is None:
                return backbone
            if dtype not in self.folded:
                self.folded[dtype] = _fold(backbone, self._norm_types, pixel_values.shape[1], dtype)
            return self.folded[dtype] or backbone


# In training


class ConvolutionBeforeNorm(nn.Conv2d):
    """A convolution that also computes the frozen batch norm after it, in training.

    The scaled weights are tiny beside the feature maps: the norm's passes over a map, forward and backward, are saved,
    and so is the map that the norm would keep for its backward pass. Gradients are those of the weights as they are,
    equal to within rounding. In evaluation mode each of the two layers computes its own part.

    Attributes:
        pair: The convolution and its norm.
    """

    pair: "NormPair"

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) → (B, new channels, new h, new w)."""
        weight, bias = self.weight, self.bias
        if self.pair.is_folded:
            scale, shift = self.pair.constants(weight.dtype)
            weight = weight * scale[:, None, None, None]
            bias = shift if bias is None else shift + bias * scale
        return self._convolve(features, weight, bias)

    def _convolve(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        output: Tensor = self._conv_forward(features, weight, bias)
        return output


class SameConvolutionBeforeNorm(ConvolutionBeforeNorm, Conv2dSame):
    """The same for TensorFlow's padding, as in timm's `tf_…` models."""

    def _convolve(self, features: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        settings: Any = (self.stride, self.padding, self.dilation, self.groups)
        output: Tensor = conv2d_same(features, weight, bias, *settings)
        return output


_BEFORE_NORM: dict[type[nn.Module], type[ConvolutionBeforeNorm]] = {
    nn.Conv2d: ConvolutionBeforeNorm,
    Conv2dSame: SameConvolutionBeforeNorm,
}
_CONVOLUTIONS = (*_BEFORE_NORM, *_BEFORE_NORM.values())


class NormPair:
    """A convolution and the frozen batch norm that alone reads its output.

    Args:
        backbone: The module that both are in.
        convolution: Name of the convolution.
        norm: Name of the norm.
    """

    def __init__(self, backbone: nn.Module, convolution: str, norm: str) -> None:
        self._places = [_place(backbone, convolution), _place(backbone, norm)]
        self._convolution, self._norm = (parent._modules[name] for parent, name in self._places)
        self._tensors: list[Tensor] = []
        self._versions: list[int] = []
        self._constants: tuple[Tensor, Tensor] | None = None

    @property
    def is_folded(self) -> bool:
        """Whether the convolution computes the norm now: in training, while both are in their places and unwatched."""
        convolution, norm = self._convolution, self._norm
        if convolution is None or norm is None or not convolution.training or not torch.is_grad_enabled():
            return False
        (parent, name), (norm_parent, norm_name) = self._places
        is_in_place = parent._modules.get(name) is convolution and norm_parent._modules.get(norm_name) is norm
        return is_in_place and not (convolution._forward_hooks or norm._forward_pre_hooks)

    def constants(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The norm's scale and shift, (channels,) each; kept until one of its tensors changes."""
        norm: Any = self._norm
        tensors = [norm.running_mean, norm.running_var, norm.weight, norm.bias]
        if torch.compiler.is_compiling() or any(tensor.is_inference() for tensor in tensors):
            return self._compute(dtype)
        versions = [tensor._version for tensor in tensors]
        is_same = len(self._tensors) == len(tensors) and all(map(operator.is_, self._tensors, tensors))
        if self._constants is None or not is_same or versions != self._versions or self._constants[0].dtype != dtype:
            self._tensors, self._versions, self._constants = tensors, versions, self._compute(dtype)
        return self._constants

    @torch.no_grad()
    def _compute(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        scale, shift = _scale_and_shift(self._norm, torch.promote_types(dtype, torch.float32))
        return scale.to(dtype), shift.to(dtype)


def _place(backbone: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The parent of a module, and its name there."""
    parent, _, child = name.rpartition(".")
    return backbone.get_submodule(parent), child


def fold_when_training(backbone: nn.Module, frozen_norm: type[nn.Module], channels: int) -> None:
    """Has convolutions compute the frozen batch norms after them, in training; norms elsewhere stay as they are.

    Args:
        backbone: Its convolutions become `ConvolutionBeforeNorm`; weights and names stay.
        frozen_norm: Class of the norms, whose `pair` is set.
        channels: Channels of an image.
    """
    batch, height, width = _PROBE_SIZE
    probe = torch.empty(batch, channels, height, width, device="meta")
    try:
        copied = _copy_sharing_tensors(backbone).to("meta").eval()
        with torch.no_grad():
            pairs, _ = _norms_after_convolutions(copied, (frozen_norm,), probe)
    except Exception:  # whatever a backbone raises that cannot be copied, or called with the probe
        return
    names = {module: name for name, module in copied.named_modules()}
    for copied_norm, copied_convolution in pairs.items():
        convolution: Any = backbone.get_submodule(names[copied_convolution])
        norm: Any = backbone.get_submodule(names[copied_norm])
        if type(convolution) in _BEFORE_NORM:
            convolution.__class__ = _BEFORE_NORM[type(convolution)]  # with the same weights, and in the same place
            convolution.pair = norm.pair = NormPair(backbone, names[copied_convolution], names[copied_norm])


# When a copy may be used


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is one of float32 on the CPU, rather than of a subclass, which may do more than compute."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.dtype == torch.float32


def _num_pixels(pixel_values: Tensor) -> int:
    batch, _, height, width = pixel_values.shape
    return batch * height * width


def _needs_gradients(backbone: nn.Module, pixel_values: Tensor) -> bool:
    return torch.is_grad_enabled() and (
        pixel_values.requires_grad or any(parameter.requires_grad for parameter in backbone.parameters())
    )


def _is_watched() -> bool:
    """Whether something sees the layers or operations of a forward pass: hooks of all modules, modes, transforms."""
    return (
        _has_any_global_hook()
        or is_in_torch_dispatch_mode()
        or torch._C._functorch.peek_interpreter_stack() is not None  # vmap, grad, jvp, …
        or torch.autograd.forward_ad._current_level >= 0
    )


def _is_ordinary(module: nn.Module) -> bool:
    """Whether calling a module in evaluation mode does what its class does, and nothing else."""
    return not (
        module.training
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


_CONSTANTS = ("stride", "padding", "dilation", "groups", "padding_mode", "eps")  # of convolutions and norms


class _TensorState(NamedTuple):
    """A weight or buffer as it was: where it is registered, and its identity, version and place in memory."""

    registry: Mapping[str, Tensor | None]
    name: str
    tensor: Tensor
    version: int
    address: int

    def is_current(self) -> bool:
        tensor = self.registry.get(self.name)
        return tensor is self.tensor and tensor._version == self.version and tensor.data_ptr() == self.address


class _Snapshot:
    """What a copy was made from; reports whether the backbone is still the same.

    A change in place increments a tensor's version, but not one through `.data` or NumPy. So some values of each
    weight, and all of small ones, are compared too.
    """

    def __init__(self, backbone: nn.Module, tensors: list[_TensorState]) -> None:
        self.backbone = backbone
        self.modules = list(backbone.modules())
        self.children = [tuple(module._modules.values()) for module in self.modules]
        self.constants = [
            (module, name, getattr(module, name))
            for module in self.modules
            for name in _CONSTANTS
            if isinstance(getattr(module, name, None), int | float | str | tuple)
        ]
        self.tensors = tensors
        self.views = [
            flat[:: max(1, flat.numel() // _SAMPLES)] if flat.numel() > 4096 else flat
            for flat in (state.tensor.detach().as_strided((state.tensor.numel(),), (1,)) for state in tensors)
            if flat.numel()
        ]
        self.values = self._sample()

    @classmethod
    def of(cls, backbone: nn.Module) -> "_Snapshot | None":
        """The backbone as it is; None if it cannot be compared or copied safely."""
        tensors = []
        for module in backbone.modules():
            if not _is_ordinary(module):
                return None
            registries: tuple[Mapping[str, Tensor | None], ...] = (module._parameters, module._buffers)
            for registry in registries:
                for name, tensor in registry.items():
                    if tensor is None or (registry is module._buffers and not tensor.is_floating_point()):
                        continue
                    if not _is_plain(tensor) or tensor.is_inference() or not _owns_memory(tensor):
                        return None
                    tensors.append(_TensorState(registry, name, tensor, tensor._version, tensor.data_ptr()))
        with torch.inference_mode(False):
            return cls(backbone, tensors)

    def is_current(self, backbone: nn.Module) -> bool:
        """Whether the backbone is still the one, with the same weights and settings."""
        return (
            backbone is self.backbone
            and all(
                _is_ordinary(module) and tuple(module._modules.values()) == children
                for module, children in zip(self.modules, self.children, strict=True)
            )
            and all(getattr(module, name, None) == value for module, name, value in self.constants)
            and all(state.is_current() for state in self.tensors)
            and torch.equal(self._sample(), self.values)
        )

    def _sample(self) -> Tensor:
        with torch.no_grad():
            return torch.cat(self.views) if self.views else torch.empty(0)


def _owns_memory(tensor: Tensor) -> bool:
    """Whether a tensor is dense, and alone in its memory; FSDP's parts of a flat weight are not."""
    return bool(
        tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        and tensor.storage_offset() == 0
        and (tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)))
    )


# Making a copy


class ChannelsLastConv2d(nn.Module):
    """A convolution with constant weights, stored channels last.

    On one thread PyTorch computes unstrided 1 x 1 convolutions of few images by a general matrix product, which is
    slower on maps that are channels last, and rounds otherwise than on several threads. This one asks oneDNN.

    Args:
        convolution: The convolution whose weights and settings are copied.
        dtype: Precision to compute in.
    """

    bias: Tensor | None

    def __init__(self, convolution: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.padding = tuple(map(int, convolution.padding))
        self.settings = (convolution.stride, convolution.dilation, convolution.groups)
        self.has_onednn = dtype == torch.float32 and torch.backends.mkldnn.is_available()
        weight, bias = convolution.weight.detach(), convolution.bias
        self.weight = weight.to(dtype, memory_format=torch.channels_last)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) → (B, new channels, new h, new w)."""
        stride, dilation, groups = self.settings
        if self.has_onednn and torch.backends.mkldnn.enabled:
            return torch.mkldnn_convolution(features, self.weight, self.bias, self.padding, stride, dilation, groups)
        return F.conv2d(features, self.weight, self.bias, stride, self.padding, dilation, groups)


class FoldedBackbone(nn.Module):
    """A backbone that takes images in any memory format, and computes channels last.

    Args:
        backbone: The copy.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, pixel_values: Tensor) -> list[Tensor]:
        """(B, channels, H, W) → feature maps."""
        features: list[Tensor] = self.backbone(pixel_values.contiguous(memory_format=torch.channels_last))
        return features


def _fold(
    backbone: nn.Module, norm_types: tuple[type[nn.Module], ...], channels: int, dtype: torch.dtype
) -> nn.Module | None:
    """A copy of the backbone without the batch norms that follow a convolution.

    Args:
        backbone: The backbone, in evaluation mode, in float32 on the CPU.
        norm_types: Classes of batch norms.
        channels: Channels of an image.
        dtype: Precision of the copy's convolutions.

    Returns:
        The copy, in evaluation mode; None if nothing can be folded, or the copy computes something else.
    """
    if not any(type(module) in norm_types for module in backbone.modules()):
        return None
    batch, height, width = _PROBE_SIZE
    probe = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0), device="cpu")
    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            copied = _copy_sharing_tensors(backbone)
            pairs, expected = _norms_after_convolutions(copied, norm_types, probe)
            if not pairs:
                return None
            for norm, convolution in pairs.items():
                _fold_into(convolution, norm)
            _replace_modules(copied, {norm: _after_norm(norm) for norm in pairs})
            if dtype != torch.float32 and not _agree(copied(probe), expected):  # checked before weights are rounded
                return None
            _store_channels_last(copied, dtype)
            fast = FoldedBackbone(copied).eval()
            if dtype == torch.float32:
                return fast if _agree(fast(probe), expected) else None
            with torch.autocast("cpu", dtype):  # a weight may be too large for 16 bits
                return fast if all(bool(feature.isfinite().all()) for feature in fast(probe)) else None
        except Exception:  # whatever a backbone raises that cannot be copied, or called with the probe
            return None


def _copy_sharing_tensors(module: nn.Module) -> nn.Module:
    """A copy with modules of its own, but the same weights and buffers."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def _norms_after_convolutions(
    backbone: nn.Module, norm_types: tuple[type[nn.Module], ...], probe: Tensor
) -> tuple[dict[nn.Module, nn.Conv2d], list[Tensor]]:
    """Finds batch norms whose input is the output of a convolution that nothing else reads, by running a probe.

    Returns:
        The norms with their convolutions, each of which has one norm only; and the probe's feature maps.
    """
    outputs: list[tuple[nn.Conv2d, Tensor]] = []  # kept, so that no two tensors have the same identity
    sources: dict[nn.Module, set[nn.Module | None]] = {}

    def keep_output(convolution: nn.Module, _: Any, output: Tensor) -> None:
        outputs.append((convolution, output))  # type: ignore[arg-type]

    def find_source(norm: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        source = next((convolution for convolution, output in outputs if output is arguments[0]), None)
        sources.setdefault(norm, set()).add(source)

    handles: list[Any] = []
    for module in backbone.modules():
        if type(module) in _CONVOLUTIONS:
            handles.append(module.register_forward_hook(keep_output))
        elif type(module) in norm_types and _has_statistics(module):
            handles.append(module.register_forward_pre_hook(find_source))
    with _Readers(outputs) as readers:
        expected = [feature.clone() for feature in backbone(probe)]
    for handle in handles:
        handle.remove()

    pairs: dict[nn.Module, nn.Conv2d] = {}
    for norm, found in sources.items():
        convolution = next(iter(found))
        if isinstance(convolution, nn.Conv2d) and readers.counts[convolution] == 1 == len(found):
            pairs[norm] = convolution
    return pairs, expected


class _Readers(TorchFunctionMode):
    """Counts the operations that read the outputs of convolutions.

    Args:
        outputs: Convolutions and their outputs; grows while the mode is active.

    Attributes:
        counts: Convolution → operations that read its output, over all its calls.
    """

    def __init__(self, outputs: list[tuple[nn.Conv2d, Tensor]]) -> None:
        super().__init__()
        self._outputs = outputs
        self.counts: Counter[nn.Module] = Counter()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):  # not a shape, for example
            for value in tree_leaves((args, kwargs)):
                self.counts.update(convolution for convolution, output in self._outputs if output is value)
        return result


def _has_statistics(norm: nn.Module) -> bool:
    """Whether a batch norm computes with stored statistics, rather than those of the batch."""
    return norm.running_mean is not None and norm.running_var is not None


def _scale_and_shift(norm: Any, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The constants that a batch norm multiplies each channel by, and adds to it; computed in a precision."""
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.to(dtype)
    shift = -norm.running_mean.to(dtype) * scale
    if norm.bias is not None:
        shift = shift + norm.bias.to(dtype)
    return scale, shift


def _fold_into(convolution: nn.Conv2d, norm: Any) -> None:
    """Gives a convolution weights that compute it and the norm after it; its old ones stay as they are."""
    scale, shift = _scale_and_shift(norm, torch.float64)
    if convolution.bias is not None:
        shift = shift + convolution.bias.double() * scale
    weight = convolution.weight * scale.float()[:, None, None, None]
    convolution.weight = nn.Parameter(weight, requires_grad=False)
    convolution.bias = nn.Parameter(shift.float(), requires_grad=False)


def _after_norm(norm: nn.Module) -> nn.Module:
    """What some of timm's batch norms do after normalising."""
    found = [getattr(norm, name, None) for name in ("drop", "act")]
    parts = [part for part in found if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]
    return nn.Sequential(*parts) if parts else nn.Identity()


def _store_channels_last(backbone: nn.Module, dtype: torch.dtype) -> None:
    """Replaces convolutions by ones in a precision, channels last; those of other classes keep what they compute."""
    replacements: dict[nn.Module, nn.Module] = {}
    for module in backbone.modules():
        if type(module) not in _CONVOLUTIONS:
            continue
        if isinstance(module, Conv2dSame):
            weight = module.weight.detach().to(dtype, memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
            if module.bias is not None:
                module.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
        elif isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str):
            replacements[module] = ChannelsLastConv2d(module, dtype)
    _replace_modules(backbone, replacements)


def _replace_modules(backbone: nn.Module, replacements: dict[nn.Module, nn.Module]) -> None:
    """Puts other modules in the places of some."""
    for module in list(backbone.modules()):
        for name, child in module._modules.items():
            if child in replacements:
                module._modules[name] = replacements[child]


def _agree(features: list[Tensor], expected: list[Tensor]) -> bool:
    """Whether all maps are equal to within rounding."""
    return all(
        bool((feature - other).abs().max() <= _PROBE_TOLERANCE * other.abs().max())
        for feature, other in zip(features, expected, strict=True)
    )
