# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Export and serve: use a trained model
#
# From a finished run to a service that other programs call:
#
# 1. predict, in Python and in a terminal
# 2. export to ONNX
# 3. check that the exported model predicts the same
# 4. serve it over HTTP
# 5. call it
#
# In a terminal, all of it is:
#
# ```sh
# detr predict runs/demo photos
# detr export runs/demo exported --data shapes
# detr serve exported
# curl --data-binary @photo.png http://127.0.0.1:8000/predict
# ```
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
import json
import os
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import torch
from PIL import Image

from modeling_detr import Detector
from modeling_detr.commands.export import main as export
from modeling_detr.commands.predict import main as predict
from modeling_detr.commands.train import main as train
from modeling_detr.data import open_dataset, read_image


REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you
RUN = Path("runs/reduced_05" if REDUCED else "runs/demo")
LESS = ["--data", "shapes?train=64&val=16", "--epochs", "1"] if REDUCED else []
if not (RUN / "model").is_dir():
    # the same as `detr train shapes --output_dir runs/demo --resume auto`; about five minutes on two CPU cores
    train(["shapes", "--output_dir", str(RUN), "--resume", "auto", *LESS])

OUT = Path("runs/notebook_05")
shutil.rmtree(OUT, ignore_errors=True)  # what this notebook wrote before
PHOTOS = OUT / "photos"
PHOTOS.mkdir(parents=True)
index = open_dataset("shapes", split="val")
for number in (62, 16, 17):
    Image.fromarray(read_image(index.images[number]).permute(1, 2, 0).numpy()).save(PHOTOS / f"{number}.png")
PHOTO = PHOTOS / "62.png"

# %% [markdown]
# ## 1. Predict
#
# A `Detector` is a model with its image processor. It takes a path, a URL, a PIL image, an array, a folder, a list, …

# %%
detector = Detector.from_pretrained(RUN, device="cpu")
prediction = detector(PHOTO, threshold=0.5)
prediction.show()
for found in prediction:
    print(f"{found.name} {found.score:.2f} at {[round(corner) for corner in found.box_xyxy]}")

# %% [markdown]
# For many images there is the command, which continues where it was interrupted. `--save` also writes crops, CSV, Parquet, COCO, YOLO and VOC, and
# `--as_dataset` a dataset whose labels you correct.

# %%
# the same as `detr predict runs/demo runs/notebook_05/photos --save pictures,json,csv`, with a folder of our own
predict([str(RUN), str(PHOTOS), "--output_dir", str(OUT / "predicted"), "--save", "pictures,json,csv"])
sorted(path.name for path in (OUT / "predicted").iterdir())

# %% [markdown]
# ## 2. Export
#
# `detr export` writes a folder for another runtime, by default ONNX: any number of images of any size, and no Python code of the model. It needs
# `pip install 'modeling-detr[export]'`; without it, this notebook goes on with the run itself.
#
# Before the folder appears, the command compares it with the model: outputs on batches of odd sizes, with and without padding, and AP on the images of `--data`, each
# model from pixels to boxes in its own way. If AP falls by more than .002, nothing is written.

# %%
MODEL = RUN
if all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")):
    # the same as `detr export runs/demo runs/notebook_05/exported --data shapes`
    MODEL = OUT / "exported"
    export([str(RUN), str(MODEL), "--data", "shapes?val=16" if REDUCED else "shapes"])
    for file in sorted(MODEL.iterdir()):
        print(f"{file.stat().st_size:10,} {file.name}")
else:
    print("skipped: pip install 'modeling-detr[export]'")

# %% [markdown]
# ## 3. Does it predict the same?
#
# What loads a run also loads an exported model. On your own images, the two should differ by what float32 rounds: here by less than a hundredth of a pixel.

# %%
expected = detector(PHOTO, threshold=0)  # all queries
exported = Detector.from_pretrained(MODEL)(PHOTO, threshold=0)
torch.testing.assert_close(exported.scores, expected.scores, rtol=0, atol=1e-4)
torch.testing.assert_close(exported.boxes, expected.boxes, rtol=0, atol=1e-2)
print(f"largest difference: {(exported.boxes - expected.boxes).abs().max():.1e} pixels")

# %% [markdown]
# If an exported model is worse in your own program, it is mostly because of another resize. `detect.py` in the folder resizes to the pixel as here, and needs NumPy,
# Pillow and ONNX Runtime only: copy the folder to where it has to run, and `python detect.py photo.png`.
#
# ## 4. Serve
#
# `detr serve` answers over HTTP. It is a process of its own, which listens on this machine only. With `--port 0` it takes a free port, and says which. It needs
# `pip install 'modeling-detr[serve]'`; without it, the cells below do nothing.

# %%
HAS_SERVE = all(importlib.util.find_spec(name) for name in ("fastapi", "fastapi_offline", "uvicorn"))
DETR = [sys.executable, "-c", "from modeling_detr.commands import main; raise SystemExit(main())"]  # `detr`
if HAS_SERVE:
    # the same as `detr serve runs/notebook_05/exported --port 0`
    command = [*DETR, "serve", str(MODEL), "--port", "0", "--device", "cpu"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not (line := server.stdout.readline()).startswith("serving "):
        assert line, "the server did not start; its error is above"
    print(line)
    address = line.split(" at ")[-1].split()[0]

# %% [markdown]
# ## 5. Call
#
# The bytes of an image go to `/predict`, and JSON comes back. A client needs nothing of this package; `curl --data-binary @photo.png ADDRESS/predict` does the same.

# %%
if HAS_SERVE:
    with urllib.request.urlopen(f"{address}predict?threshold=0.5", PHOTO.read_bytes(), timeout=60) as response:
        (answer,) = json.load(response)["predictions"]
    assert [found["name"] for found in answer["detections"]] == prediction.names
    print(json.dumps(answer["detections"][:1], indent=1))

# %% [markdown]
# What is not an image, too large, or too much at once gets an answer that says so:

# %%
if HAS_SERVE:
    try:
        urllib.request.urlopen(f"{address}predict", b"not an image", timeout=60)
    except urllib.error.HTTPError as error:
        print(error.code, json.load(error)["error"]["message"])

# %% [markdown]
# SIGTERM or Ctrl-C ends it, after it has answered what it accepted.

# %%
if HAS_SERVE:
    server.terminate()
    print(server.communicate(timeout=60)[0])
    assert server.returncode == 0

# %% [markdown]
# ## What next
#
# | to | read |
# | --- | --- |
# | use your own run | set `RUN`, and `--data` of the export to its dataset |
# | choose a threshold for each class | [reports](../docs/reports.md), then `--threshold best` |
# | have a smaller or faster model: int8, OpenVINO, `torch.export` | [export a model](../docs/deployment.md#precisions) |
# | run it on Hugging Face, as an endpoint or a Space | [endpoints and Spaces](../docs/deployment.md#an-endpoint-or-a-space-of-hugging-face) |
# | let other machines call the server: a token, limits, Docker | [serve](../docs/serve.md#security) |
# | predict for videos, large images, datasets | [predict](../docs/predict.md) |
# | load the weights in Transformers' own DETR | [checkpoints](../docs/checkpoints.md) |
