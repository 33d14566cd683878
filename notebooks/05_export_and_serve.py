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
# Four ways out, from the easiest to the most independent, and after each a check that it still computes the same:
#
# | way | who reads it | what it needs there |
# | --- | --- | --- |
# | a folder | `from_pretrained`, `pipeline` | this package, or `trust_remote_code=True` |
# | Transformers' own DETR | `transformers` | nothing of ours |
# | `detr export` | ONNX Runtime, OpenVINO, PyTorch's compilers | no Python code of the model; with ONNX, no PyTorch |
# | HTTP | anything | a network |
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
import shutil
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import torch
import transformers
from PIL import Image
from torch.testing import assert_close
from transformers import pipeline

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.commands.evaluate import main as evaluate
from modeling_detr.commands.export import main as export
from modeling_detr.commands.train import main as train
from modeling_detr.conversion import load_model, save_for_transformers
from modeling_detr.data import open_dataset, read_image
from modeling_detr.deployment import export_detector
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.prediction import predict_objects


# %%
REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you
RUN = Path("runs/reduced_05" if REDUCED else "runs/demo")
LESS = ["--data", "shapes?train=64&val=16", "--epochs", "1"] if REDUCED else []
if not (RUN / "model").is_dir():
    # the same as `detr train shapes --output_dir runs/demo --resume auto`; about five minutes on two CPU cores
    train(["shapes", "--output_dir", str(RUN), "--resume", "auto", *LESS])

model, processor = load_model(RUN)
model.eval()
OUT = Path("runs/notebook_05")
shutil.rmtree(OUT, ignore_errors=True)  # what this notebook wrote before
OUT.mkdir(parents=True)
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
# ## ONNX
#
# `detr export MODEL FOLDER` writes a model for another runtime, by default ONNX, with any number of images of any size and with the mask. It needs
# `pip install 'modeling-detr[export]'`; without it, the cells of this section do nothing.
#
# The command compares the result with the model before the folder appears: outputs on batches of odd sizes, with and without padding; with `--data` also AP on the same
# images, each model from pixels to boxes in its own way. If AP falls by more than .002, nothing is written.

# %%
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
DATA = "shapes?val=16" if REDUCED else "shapes"
if HAS_ONNX:
    # the same as `detr export runs/demo runs/notebook_05/onnx --data shapes`
    export([str(RUN), str(OUT / "onnx"), "--data", DATA])
    for file in sorted((OUT / "onnx").iterdir()):
        print(f"{file.stat().st_size:10,} {file.name}")
else:
    print("skipped: pip install 'modeling-detr[export]'")

# %% [markdown]
# The differences are those of float32, not zero. `export.json` has the table as numbers, and all that a program needs: names of inputs and outputs, labels, how to
# resize and normalise.
#
# Most "the exported model is worse" come from another resize. `detect.py` has the same one to the pixel, and needs NumPy, Pillow and ONNX Runtime only: copy the
# folder to where it has to run.

# %%
picture.save(OUT / "photo.png")
if HAS_ONNX:
    command = [sys.executable, OUT / "onnx/detect.py", OUT / "photo.png", "--threshold", "0"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    scores = torch.tensor([json.loads(line)["score"] for line in lines])  # the highest first
    truth = predict_objects(model, processor, images[0], threshold=0)["scores"]
    assert_close(scores, truth.sort(descending=True).values, rtol=0, atol=1e-4)
    print("\n".join(lines[:3]))

# %% [markdown]
# `detr predict` and `detr evaluate` take the folder like a model:

# %%
if HAS_ONNX:
    # the same as `detr evaluate runs/notebook_05/onnx shapes`
    evaluate([str(OUT / "onnx"), DATA, "--output_dir", str(OUT / "evaluation"), "--num_workers", "0"])

# %% [markdown]
# Your own program runs the file with any ONNX runtime. The outputs are logits and boxes; `--postprocess true` makes them scores, labels and boxes in pixels.

# %%
if HAS_ONNX:
    import onnxruntime

    session = onnxruntime.InferenceSession(OUT / "onnx/model.onnx", providers=["CPUExecutionProvider"])
    for tensor in (*session.get_inputs(), *session.get_outputs()):
        print(tensor.name, tensor.shape)
    logits, boxes = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    assert_close(torch.from_numpy(boxes), expected.pred_boxes, rtol=0, atol=1e-4)

# %% [markdown]
# ### 8 bits
#
# `--precision int8` stores the linear layers in a quarter of the size. The heads stay in float32, because boxes need it. Here AP may fall by .01. In
# Python, `export_detector` is the command:

# %%
if HAS_ONNX and not REDUCED:
    checks = export_detector(model, processor, OUT / "int8", precision="int8", data=index.select(range(200)))
    print(checks.table())

# %% [markdown]
# `--to openvino` and `--to torch` (a `.pt2` of `torch.export`) are made and compared in the same way; [Export a model](../docs/deployment.md) has all targets and
# precisions.

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
# - It runs the model in PyTorch. `Detector` of an exported `detect.py` can take its place; it returns names, scores and boxes, too.
# - Times in the tables are those of this machine and these images. **Measure on the machine that the model is for.**
#
# **What to change.** Your own run in `RUN` and its data in `DATA`; `threshold`, which trades misses against false alarms, one for each class if you like
# ([how](../docs/python.md#a-score-threshold-for-each-class)).
