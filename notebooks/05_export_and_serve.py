# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Export and serve: a trained model outside of its training
#
# Five ways out, from the easiest to the most independent, and after each a check that it still computes the same:
#
# | way | who reads it | what it needs there |
# | --- | --- | --- |
# | a folder | `from_pretrained`, `pipeline` | this package, or `trust_remote_code=True` |
# | Transformers' own DETR | `transformers` | nothing of ours |
# | torch.export | PyTorch | no Python code of the model |
# | ONNX | ONNX Runtime, and what else reads ONNX | no PyTorch |
# | HTTP | anything | a network |
#
# There is no command `detr export` or `detr serve`; what follows is PyTorch's and Python's own, and a few lines each.
#
# Where the package is not installed, as on Colab, upload a ZIP of the repository beside this notebook. In a clone,
# `git archive --prefix=modeling_detr/ --output=modeling_detr.zip HEAD` makes it.

# %%
import importlib.util
import subprocess
import sys


if importlib.util.find_spec("modeling_detr") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "modeling_detr.zip"], check=True)

# %%
import io
import json
import os
import threading
import time
import urllib.error
import urllib.request
import warnings
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch import nn
from torch.export import Dim
from torch.testing import assert_close
from transformers import pipeline

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.commands.train import main as train
from modeling_detr.conversion import load_model, save_for_transformers
from modeling_detr.data import open_dataset, read_image
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.modeling_detr import DetrObjectDetectionOutput
from modeling_detr.prediction import predict_objects
from modeling_detr.visualization import draw_prediction


# %%
REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you
RUN = Path("runs/reduced_05" if REDUCED else "runs/demo")
LESS = ["--data", "shapes?train=64&val=16", "--epochs", "1"] if REDUCED else []
if not (RUN / "model").is_dir():
    # the same as `detr train shapes --output_dir runs/demo --resume auto`; about five minutes on two CPU cores
    train(["shapes", "--output_dir", str(RUN), "--resume", "auto", *LESS])

model, processor = load_model(RUN)
model.eval()
OUT = Path("runs/export")
OUT.mkdir(parents=True, exist_ok=True)
torch.set_grad_enabled(False)
transformers.utils.logging.disable_progress_bar()

index = open_dataset("shapes", split="val")
images = [read_image(index.images[number]) for number in (62, 16, 17)]
images[1] = images[1][:, :96]  # another shape, so that the batch has padding
inputs = processor(images)
expected = model(**inputs)
{name: tuple(tensor.shape) for name, tensor in inputs.items()}

# %% [markdown]
# Two inputs, and the second is not optional: `pixel_mask` is 1 where there is image and 0 where there is padding. Exported without it, a model takes padding for
# image.
#
# ## A folder
#
# A run's folder has its best model in `model/`. `save_pretrained` writes the same anywhere: weights as safetensors, which hold no code, and two JSON files that
# say what weights and pixels mean.

# %%
model.save_pretrained(OUT / "folder")
processor.save_pretrained(OUT / "folder")
for file in sorted((OUT / "folder").iterdir()):
    if file.suffix != ".py":  # a copy of the code for `trust_remote_code=True`
        print(f"{file.stat().st_size:10,} {file.name}")

# %%
again = DetrForObjectDetection.from_pretrained(OUT / "folder").eval()
DetrTorchvisionImageProcessor.from_pretrained(OUT / "folder")
assert torch.equal(again(**inputs).logits, expected.logits)  # bit for bit

# %%
find = pipeline("object-detection", model=str(OUT / "folder"), trust_remote_code=False)
picture = Image.fromarray(images[0].permute(1, 2, 0).numpy())
find(picture, threshold=0.9)

# %% [markdown]
# ## Transformers' own DETR
#
# `detr convert MODEL FOLDER --to transformers` writes what Transformers' `DetrForObjectDetection` loads without this package. It can only do so for an
# architecture that Transformers has. The demo model is not one; the error says why:

# %%
try:
    save_for_transformers(model, processor, OUT / "stock")
except ValueError as error:
    print(error)

# %% [markdown]
# A model with a plain ResNet is. Its weights are random here, which does not matter for the question whether both compute the same:

# %%
torch.manual_seed(0)
plain = DetrForObjectDetection(
    DetrConfig(
        backbone="resnet18",
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_labels=4,
    )
).eval()
save_for_transformers(plain, processor, OUT / "stock")
stock = transformers.DetrForObjectDetection.from_pretrained(OUT / "stock").eval()
assert_close(stock(**inputs).logits, plain(**inputs).logits, rtol=0, atol=1e-4)
type(stock)

# %% [markdown]
# ## torch.export
#
# `torch.export` records the model as a graph of tensor operations. The file runs in PyTorch without the model's Python code, and is what compilers for devices
# start from. Say which sizes may vary, or the graph is for this batch only. Here: any number of images, and sides of any multiple of 32.


# %%
class Detector(nn.Module):
    """Two tensors in, two tensors out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values, pixel_mask):
        """(B, 3, H, W) and (B, H, W) → logits (B, N, C + 1) and boxes (B, N, 4)."""
        outputs = self.model(pixel_values, pixel_mask)
        return outputs.logits, outputs.pred_boxes


batch, rows, columns = Dim("batch", min=1, max=64), Dim("rows", min=1, max=42), Dim("columns", min=1, max=42)
sizes = {
    "pixel_values": {0: batch, 2: 32 * rows, 3: 32 * columns},
    "pixel_mask": {0: batch, 1: 32 * rows, 2: 32 * columns},
}
detector = Detector(model).eval()
program = torch.export.export(detector, (), dict(inputs), dynamic_shapes=sizes, strict=False)
torch.export.save(program, OUT / "detector.pt2")

# %%
loaded = torch.export.load(OUT / "detector.pt2").module()
logits, boxes = loaded(**inputs)
assert_close(logits, expected.logits, rtol=0, atol=1e-4)
assert_close(boxes, expected.pred_boxes, rtol=0, atol=1e-4)

single = processor(images[2:3])  # another batch than the graph was made with
assert_close(loaded(**single)[1], model(**single).pred_boxes, rtol=0, atol=1e-4)
f"{(OUT / 'detector.pt2').stat().st_size:,} bytes"

# %% [markdown]
# Logits and boxes are not detections yet: softmax, threshold and scaling to pixels are the processor's, which also takes the outputs of an exported model. It needs
# this package; elsewhere it is about five lines to write again.

# %%
outputs = DetrObjectDetectionOutput(logits=logits, pred_boxes=boxes)
results = processor.post_process_object_detection(outputs, 0.9, target_sizes=[image.shape[-2:] for image in images])
draw_prediction(images[0], results[0], model.config.id2label)

# %% [markdown]
# ## ONNX
#
# The same graph in a format that does not need PyTorch. The packages are an extra: `pip install 'modeling-detr[export]'`. Without them, the next cells do nothing.

# %%
has_onnx = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
if has_onnx:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about names of axes
        onnx_program = torch.onnx.export(
            detector,
            (),
            kwargs=dict(inputs),
            dynamo=True,
            dynamic_shapes=sizes,
            output_names=["logits", "boxes"],
            verbose=False,
        )
    onnx_program.save(OUT / "detector.onnx")
else:
    print("skipped: pip install 'modeling-detr[export]'")

# %%
if has_onnx:
    import onnxruntime

    session = onnxruntime.InferenceSession(OUT / "detector.onnx", providers=["CPUExecutionProvider"])
    for given in (inputs, single):
        arrays = {name: tensor.numpy() for name, tensor in given.items()}
        onnx_logits, onnx_boxes = session.run(None, arrays)
        truth = model(**given)
        apart = [abs(onnx_logits - truth.logits.numpy()).max(), abs(onnx_boxes - truth.pred_boxes.numpy()).max()]
        print(f"largest difference of logits {apart[0]:.0e}, of boxes {apart[1]:.0e}")
        assert max(apart) < 1e-4

# %% [markdown]
# The differences are those of float32, not zero. **Compare on images of your own before you ship**: a detection whose score is at the threshold may fall on the other
# side. How fast is it? On this machine, one image at a time, the median of twenty:


# %%
def milliseconds(run):
    """The median time of a call."""
    times = []
    for _ in range(20):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * sorted(times)[10]


print(f"PyTorch       {milliseconds(lambda: model(**single)):6.1f} ms")
print(f"torch.export  {milliseconds(lambda: loaded(**single)):6.1f} ms")
if has_onnx:
    arrays = {name: tensor.numpy() for name, tensor in single.items()}
    print(f"ONNX Runtime  {milliseconds(lambda: session.run(None, arrays)):6.1f} ms")

# %% [markdown]
# ## A service over HTTP
#
# An image in, JSON out, with nothing but Python's standard library. It takes bytes only: never pass a path or an address from a stranger to the processor, which
# would open it.

# %%
MOST_BYTES = 20_000_000


class Service(BaseHTTPRequestHandler):
    """Answers POST requests that have an image as their body."""

    def do_POST(self):
        """Detects the objects in the image."""
        length = int(self.headers.get("Content-Length") or 0)
        if not 0 < length <= MOST_BYTES:
            return self.answer(413, {"error": f"expected an image of 1 to {MOST_BYTES} bytes, got {length}"})
        try:
            pixels = to_rgb(self.rfile.read(length))
        except (OSError, ValueError) as error:
            return self.answer(400, {"error": str(error)})
        found = predict_objects(model, processor, pixels, threshold=0.9)
        rows = zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True)
        objects = [
            {"name": model.config.id2label[label], "score": score, "box_xyxy": box} for score, label, box in rows
        ]
        return self.answer(200, {"objects": objects})

    def answer(self, status, content):
        """Sends JSON."""
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        """Keeps the notebook quiet."""


server = HTTPServer(("127.0.0.1", 0), Service)  # port 0: any free one; this machine only
threading.Thread(target=server.serve_forever, daemon=True).start()
address = f"http://127.0.0.1:{server.server_port}"

# %% [markdown]
# A client needs nothing of all this. In a terminal: `curl --data-binary @photo.jpg ADDRESS`.

# %%
body = io.BytesIO()
picture.save(body, "PNG")
request = urllib.request.Request(address, body.getvalue())
with urllib.request.urlopen(request, timeout=60) as response:
    answer = json.load(response)
assert len(answer["objects"]) == len(predict_objects(model, processor, images[0], 0.9)["scores"])
answer["objects"][:2]

# %% [markdown]
# And what is not an image gets an answer too:

# %%
try:
    urllib.request.urlopen(urllib.request.Request(address, b"not an image"), timeout=60)
except urllib.error.HTTPError as error:
    print(error.code, json.load(error))

server.shutdown()
server.server_close()

# %% [markdown]
# ## What this does not give you
#
# - The service answers one request after the other, forms no batches, and knows neither passwords nor TLS. It is for a desk, or behind a server that does that.
# - Nothing here is quantised or in half precision. Boxes need float32: in half precision they move by pixels in large images.
# - The exported graphs contain the detector without masks. `DetrForSegmentation` exports the same way with `pred_masks` as a third output.
# - The image processor is not part of a graph: resizing and normalising happen before it, with the numbers in `preprocessor_config.json`. Most "the exported model is
#   worse" come from another resize.
# - Sizes outside the ranges above are refused, and a graph is for the PyTorch, or the ONNX opset, that it was made with.
#
# **What to change.** Your own run in `RUN`; the range of sizes; `threshold`, which trades misses against false alarms, one for each class if you like
# ([how](../docs/python.md#a-score-threshold-for-each-class)).
