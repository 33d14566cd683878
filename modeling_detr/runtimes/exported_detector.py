"""An exported model that is called like a model of this package, by `detr predict` and `detr evaluate`.

Shapes: B images · Q queries · C classes · M masks · H, W pixels · h, w cells of a mask.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert

from modeling_detr.configuration_detr import DetrConfig
from modeling_detr.errors_detr import ModelError
from modeling_detr.modeling_detr import DetrObjectDetectionOutput
from modeling_detr.padding_detr import ImageList, batch_of
from modeling_detr.runtimes import RunModel, open_model
from modeling_detr.runtimes.manifest import MANIFEST, Manifest
from modeling_detr.segmentation_detr import DetrSegmentationOutput, image_sizes


_MASK_SCORE = 0.5  # masks of lower scores are computed when they are asked for
_NO_MASK = -1e4  # logit of a mask that the exported model does not compute


class ExportedDetector(nn.Module):
    """A model in another runtime, on the CPU. It cannot be trained, and returns no loss.

    Args:
        folder: The exported folder.
        manifest: Its `export.json`.
        run: The model; see `open_model`.
    """

    def __init__(self, folder: Path, manifest: Manifest, run: RunModel) -> None:
        super().__init__()
        self.config = DetrConfig.from_pretrained(folder)
        if manifest.labels != tuple(self.config.class_names):
            problem = f"its labels are not those of config.json ({len(manifest.labels)} and {self.config.num_classes})"
            raise ModelError(folder / MANIFEST, problem, "export the model again")
        self.manifest = manifest
        self.run = run
        self.eval()

    @classmethod
    def from_folder(cls, folder: str | Path, trust_code: bool = False) -> "ExportedDetector":
        """Opens an exported folder, as an `ExportedSegmenter` if it has masks.

        Args:
            folder: The folder.
            trust_code: Open models of runtimes whose files can run code, too.

        Raises:
            ModelError: The folder is damaged or can run code, or its runtime is not installed.
        """
        folder = Path(folder)
        manifest = Manifest.read(folder)
        kind = ExportedSegmenter if "pred_masks" in manifest.outputs else ExportedDetector
        return kind(folder, manifest, open_model(folder, manifest.to_dict(), trust_code))

    @property
    def device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    @torch.inference_mode()
    def forward(
        self, pixel_values: Tensor | ImageList, pixel_mask: Tensor | None = None, **_: Any
    ) -> DetrObjectDetectionOutput:
        """Detects objects; see `DetrForObjectDetection.forward`."""
        outputs = self.run_batch(*batch_of(pixel_values, pixel_mask), 1.0)
        return DetrObjectDetectionOutput(logits=outputs["logits"], pred_boxes=outputs["pred_boxes"])

    def run_batch(self, pixel_values: Tensor, pixel_mask: Tensor | None, score_threshold: float) -> dict[str, Tensor]:
        """Runs the model.

        Args:
            pixel_values: (B, 3, H, W).
            pixel_mask: (B, H, W), 1 = image; None if nothing is padded.
            score_threshold: Masks are computed for queries with a higher score.

        Returns:
            `logits` (B, Q, C + 1), `pred_boxes` (B, Q, 4), and with masks `mask_queries` (M, 2) and `pred_masks`
            (M, h, w).

        Raises:
            ModelError: The images are larger than the size that the model was exported for, or padded although it
                takes no mask.
        """
        if pixel_mask is None:
            pixel_mask = torch.ones_like(pixel_values[:, 0], dtype=torch.int64)
        if self.manifest.fixed_size is not None:
            pixel_values, pixel_mask = self._pad(pixel_values, pixel_mask, self.manifest.fixed_size)
        takes_mask = "pixel_mask" in self.manifest.inputs
        if not takes_mask and not self.config.trained_without_mask and not bool(pixel_mask.all()):
            raise ModelError(
                "the exported model",
                "takes no pixel_mask, but the images of this batch are padded to one size",
                "use a batch size of 1 and images of the exported size, or export it with a mask",
            )
        inputs = {
            "pixel_values": pixel_values.float(),
            "pixel_mask": pixel_mask.long(),
            "score_threshold": torch.tensor(score_threshold),
            "image_sizes": torch.ones(len(pixel_values), 2, dtype=torch.int64),
        }
        arrays = self.run({name: inputs[name].cpu().contiguous().numpy() for name in self.manifest.inputs})
        outputs = {name: torch.as_tensor(arrays[name]) for name in self.manifest.outputs}
        if "logits" not in outputs:
            outputs |= self._before_post_processing(outputs)
        elif outputs["logits"].shape[-1] != self.config.num_classes + 1:
            problem = f"has logits of {outputs['logits'].shape[-1]} classes, expected {self.config.num_classes + 1}"
            raise ModelError(f"the file {self.manifest.file}", problem, "export the model again")
        return outputs

    def _pad(self, pixel_values: Tensor, pixel_mask: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        height, width = pixel_values.shape[-2:]
        if height > size[0] or width > size[1]:
            raise ModelError(
                "the exported model",
                f"takes images of up to {size[1]}x{size[0]} (width x height), got {width}x{height}",
                "export it with a larger fixed_size",
            )
        padding = (0, size[1] - width, 0, size[0] - height)
        return F.pad(pixel_values, padding), F.pad(pixel_mask, padding)

    def _before_post_processing(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logits and boxes whose post-processing gives these scores, labels and boxes of an image of size 1."""
        scores = outputs["scores"].double()
        logits = torch.full((*scores.shape, self.config.num_classes + 1), -torch.inf, dtype=scores.dtype)
        logits[..., -1] = (1 - scores).log()
        logits.scatter_(2, outputs["labels"][..., None], scores.log()[..., None])
        return {"logits": logits.float(), "pred_boxes": box_convert(outputs["boxes"], "xyxy", "cxcywh")}


class ExportedSegmenter(ExportedDetector):
    """An exported model with masks."""

    @torch.inference_mode()
    def forward(
        self,
        pixel_values: Tensor | ImageList,
        pixel_mask: Tensor | None = None,
        output_masks: bool | None = None,
        **_: Any,
    ) -> DetrSegmentationOutput:
        """Detects and segments objects; see `DetrForSegmentation.forward`."""
        pixel_values, pixel_mask = batch_of(pixel_values, pixel_mask)
        wants_all = output_masks is not False
        outputs = self.run_batch(pixel_values, pixel_mask, -1.0 if wants_all else _MASK_SCORE)
        batch, queries = outputs["logits"].shape[:2]
        masks = None
        if wants_all:
            computed = outputs["pred_masks"]
            masks = computed.new_full((batch, queries, *computed.shape[1:]), _NO_MASK)
            masks[tuple(outputs["mask_queries"].T)] = computed
        stuff = self.config.stuff_labels
        result = DetrSegmentationOutput(
            logits=outputs["logits"],
            pred_boxes=outputs["pred_boxes"],
            pred_masks=masks,
            image_sizes=image_sizes(pixel_values, pixel_mask),
            canvas_size=torch.tensor(self.manifest.fixed_size or pixel_values.shape[-2:]).expand(batch, -1),
            stuff_labels=torch.tensor(stuff).expand(batch, -1) if stuff else None,
        )
        self._last = (result, pixel_values, pixel_mask, outputs)
        return result

    @torch.inference_mode()
    def predict_masks(self, outputs: DetrSegmentationOutput, keep: Tensor) -> Tensor:
        """The masks of selected queries of the last batch; see `DetrForSegmentation.predict_masks`.

        Raises:
            ModelError: The model was exported with masks for fewer queries.
            ValueError: These are not the outputs of the last call.
        """
        result, pixel_values, pixel_mask, computed = self._last
        if result is not outputs:
            raise ValueError("outputs: not those of the last call; an exported model keeps only these.")
        positions = self._positions(computed["mask_queries"], keep)
        if (positions < 0).any() and "score_threshold" in self.manifest.inputs:
            computed = self.run_batch(pixel_values, pixel_mask, -1.0)
            positions = self._positions(computed["mask_queries"], keep)
        if (positions < 0).any():
            raise ModelError(
                "the exported model",
                f"computes the masks of {len(computed['mask_queries']) // len(keep)} queries per image, but "
                f"{int(keep.sum(1).max())} are needed",
                "export it with a larger masks_per_image",
            )
        return computed["pred_masks"][positions]

    @staticmethod
    def _positions(mask_queries: Tensor, keep: Tensor) -> Tensor:
        """The position of each kept query's mask, or -1 if it was not computed."""
        table = torch.full(keep.shape, -1, dtype=torch.int64)
        table[tuple(mask_queries.T)] = torch.arange(len(mask_queries))
        return table[keep.cpu()]
