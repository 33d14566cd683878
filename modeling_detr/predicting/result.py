"""What a model predicts in one image, with what people do with it: look at it, save it, crop it, read it."""

import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from modeling_detr.atomic_output import synced_file
from modeling_detr.evaluation.evaluators.coco import encode_masks
from modeling_detr.structures_detr import DetectionResult, PanopticResult, SegmentInfo
from modeling_detr.visualization import draw_prediction


_MOST_CLASSES = 6  # in a line of text


class Detection(NamedTuple):
    """One object of an image.

    label: its class. name: the name of the class. score: from 0 to 1. box_xyxy: corners in pixels. mask: (H, W) bool,
    or None.
    """

    label: int
    name: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Prediction:
    """The objects or panoptic segments of one image.

    It reads like a list of objects: `len(prediction)`, `prediction[0]`, `for found in prediction`. A notebook shows it
    as a picture.

    Attributes:
        result: The tensors: `scores` (K,), `labels` (K,) and `boxes` (K, 4) xyxy in pixels of the image, with `masks`
            (K, H, W) bool from a model that predicts them; or `segmentation` (H, W) and `segments_info`.
        class_names: Label → name of the class.
        size: (height, width) of the image.
        image: (3, H, W) uint8 RGB; None if it was not kept.
        source: The path or URL of the image; empty if it has none.
    """

    result: DetectionResult | PanopticResult
    class_names: Mapping[int, str]
    size: tuple[int, int]
    image: Tensor | None = None
    source: str = ""

    @property
    def is_panoptic(self) -> bool:
        """Whether it has segments instead of objects."""
        return "segmentation" in self.result

    @property
    def objects(self) -> DetectionResult:
        """The tensors of the objects.

        Raises:
            AttributeError: It has segments instead.
        """
        if self.is_panoptic:
            raise AttributeError("a panoptic prediction has no boxes; use `segmentation` and `segments`.")
        return cast(DetectionResult, self.result)

    @property
    def boxes(self) -> Tensor:
        """(K, 4) xyxy in pixels of the image, by descending score."""
        return self.objects["boxes"]

    @property
    def scores(self) -> Tensor:
        """(K,) from 0 to 1, in descending order."""
        return self.objects["scores"]

    @property
    def labels(self) -> Tensor:
        """(K,) int64, the class of each object."""
        return self.objects["labels"]

    @property
    def names(self) -> list[str]:
        """The name of each object's or segment's class."""
        labels = [info["label_id"] for info in self.segments] if self.is_panoptic else self.labels.tolist()
        return [self.class_names[label] for label in labels]

    @property
    def masks(self) -> Tensor | None:
        """(K, H, W) bool; None if the model predicts no masks."""
        return self.objects.get("masks")

    @property
    def segmentation(self) -> Tensor:
        """(H, W) int, the id of each pixel's segment; 0: none."""
        return self._segments["segmentation"]

    @property
    def segments(self) -> list[SegmentInfo]:
        """The segments: `id`, `label_id` and `score` of each."""
        return self._segments["segments_info"]

    def __len__(self) -> int:
        return len(self.segments) if self.is_panoptic else len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        masks = self.masks
        rows = zip(self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        for row, (label, score, box) in enumerate(rows):
            yield Detection(label, self.class_names[label], score, tuple(box), None if masks is None else masks[row])

    def __getitem__(self, index: int) -> Detection:
        objects: list[Detection] = [*self]
        return objects[index]

    def __repr__(self) -> str:
        kind = "segment" if self.is_panoptic else "object"
        where = f" in {self.source}" if self.source else ""
        classes = f": {counted_by_class(self.names)}" if len(self) else ""
        return f"<{len(self)} {kind}{'' if len(self) == 1 else 's'}{where}{classes}>"

    def draw(self) -> Image.Image:
        """The image with what was predicted; small images are enlarged.

        Raises:
            ValueError: The image was not kept.
        """
        return draw_prediction(self._pixels, self.result, self.class_names)

    def save(self, path: str | Path) -> Path:
        """Saves the drawn picture, and returns its path.

        Raises:
            OutputError: It cannot be written.
            ValueError: The image was not kept, or the path has no suffix of an image format.
        """
        if Path(path).suffix.lower() not in Image.registered_extensions():
            raise ValueError(f"{path}: has no suffix of an image format, such as .jpg or .png.")
        picture = self.draw()
        with synced_file(path) as file:
            picture.save(file, quality=92)
        return Path(path)

    def show(self) -> None:
        """Shows the drawn picture: below the cell of a notebook, else in a window."""
        try:
            from IPython import get_ipython
            from IPython.display import display
        except ImportError:
            self.draw().show()
            return
        if get_ipython() is None:
            self.draw().show()
        else:
            display(self)

    def crop(self, margin: float = 0.0) -> list[Image.Image]:
        """The part of the image inside each box.

        Args:
            margin: Added on each side, as a share of the box's size; cut at the edge of the image.

        Raises:
            ValueError: The image was not kept.
        """
        height, width = self.size
        crops = []
        for x0, y0, x1, y1 in self.boxes.tolist():
            across, down = margin * (x1 - x0), margin * (y1 - y0)
            left, top = min(max(0, round(x0 - across)), width - 1), min(max(0, round(y0 - down)), height - 1)
            right, bottom = max(min(width, round(x1 + across)), left + 1), max(min(height, round(y1 + down)), top + 1)
            crops.append(transforms.to_pil_image(self._pixels[:, top:bottom, left:right]))
        return crops

    def to_dict(self) -> dict[str, Any]:
        """Everything but the pixels as plain values, ready for JSON.

        `height`, `width`, and `detections`: `label`, `name`, `score`, `box_xyxy`, and `segmentation` as COCO's RLE if
        there are masks. Or `segments`: `id`, `label`, `name`, `score`, `area`; the map itself is not included.
        """
        height, width = self.size
        content = {"segments": self._plain_segments()} if self.is_panoptic else {"detections": self._plain_objects()}
        return {"height": height, "width": width, **content}

    def _plain_objects(self) -> list[dict[str, Any]]:
        detections = [
            {"label": found.label, "name": found.name, "score": found.score, "box_xyxy": list(found.box_xyxy)}
            for found in self
        ]
        if self.masks is not None:
            for detection, mask in zip(detections, encode_masks(self.masks.numpy()), strict=True):
                detection["segmentation"] = {**mask, "counts": mask["counts"].decode("ascii")}
        return detections

    def _plain_segments(self) -> list[dict[str, Any]]:
        return [
            {
                "id": info["id"],
                "label": info["label_id"],
                "name": self.class_names[info["label_id"]],
                "score": info["score"],
                "area": int((self.segmentation == info["id"]).sum()),
            }
            for info in self.segments
        ]

    def _repr_png_(self) -> bytes | None:
        """The picture that a notebook shows."""
        if self.image is None:
            return None
        buffer = io.BytesIO()
        self.draw().save(buffer, "PNG")
        return buffer.getvalue()

    @property
    def _segments(self) -> PanopticResult:
        if not self.is_panoptic:
            raise AttributeError("the model predicts no panoptic segments; use `boxes`, `labels` and `scores`.")
        return cast(PanopticResult, self.result)

    @property
    def _pixels(self) -> Tensor:
        if self.image is None:
            raise ValueError("the prediction has no image, which was not kept (keep_image=False).")
        return self.image


def counted_by_class(names: Iterable[str]) -> str:
    """The most frequent classes with their numbers: "star 3, square 1".

    Args:
        names: The class of each object.
    """
    counts = Counter(names).most_common()
    shown = [f"{name} {count}" for name, count in counts[:_MOST_CLASSES]]
    if len(counts) > len(shown):
        shown.append("…")
    return ", ".join(shown)
