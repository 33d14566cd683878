"""A page to try the model beside this file: drop an image, see the objects. It runs as a Space, or on your machine:

pip install gradio
python app.py
"""

from pathlib import Path

import gradio
from handler import EndpointHandler
from PIL import Image, ImageOps


Box = tuple[int, int, int, int]

handler = EndpointHandler(str(Path(__file__).parent))


def detect(image: Image.Image | None, threshold: float) -> tuple[Image.Image, list[tuple[Box, str]]] | None:
    """The image, with a box and a label for each object."""
    if image is None:
        return None
    image = ImageOps.exif_transpose(image).convert("RGB")
    found = handler({"inputs": image, "parameters": {"threshold": threshold}})
    return image, [(_inside(one["box"], image), f"{one['label']} {one['score']:.2f}") for one in found]


def _inside(box: dict[str, int], image: Image.Image) -> Box:
    """The part of a box inside the image, which is what can be shown."""
    xs = [min(max(0, box[side]), image.width) for side in ("xmin", "xmax")]
    ys = [min(max(0, box[side]), image.height) for side in ("ymin", "ymax")]
    return xs[0], ys[0], xs[1], ys[1]


page = gradio.Interface(
    detect,
    [gradio.Image(type="pil", label="Image"), gradio.Slider(0, 1, 0.5, step=0.01, label="Lowest score")],
    gradio.AnnotatedImage(label="Objects"),
    title="Object detection with DETR",
    flagging_mode="never",
)

if __name__ == "__main__":
    page.launch()
