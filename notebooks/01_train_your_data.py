# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Train on your own data
#
# A folder of images with boxes becomes a detector: **check** the labels, read the **plan**, **train**, look at the **errors**, choose a **threshold**,
# **use** the model. The data here is drawn and the model small, so that everything takes minutes on two CPU cores. With your data, one path changes.
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
import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from modeling_detr import DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.data import build_eval_loader, open_dataset, read_image, resize_transform
from modeling_detr.data.check import check_dataset
from modeling_detr.data.convert import convert_dataset
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.prediction import predict_objects
from modeling_detr.training.metric_logger import read_log
from modeling_detr.training.pictures import draw_predictions
from modeling_detr.training.plan import plan
from modeling_detr.training.preflight import preflight
from modeling_detr.training.recipe_parsing import parse_recipe
from modeling_detr.training.setup import prepare_run
from modeling_detr.training.trainer import Trainer
from modeling_detr.visualization import draw_curves, draw_prediction, tile


REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you

# %% [markdown]
# ## A dataset in a folder
#
# We write one in YOLO's layout, as a labelling tool would export it. COCO, Pascal VOC and `datasets` work as well, and are recognised by themselves
# ([formats](../docs/data.md)). For your own data, set `DATA = Path("my_dataset")` and leave out the
# lines that write, break and repair it.

# %%
DATA = Path("runs/my_dataset")
shutil.rmtree(DATA, ignore_errors=True)
images = "train=48&val=16" if REDUCED else "train=2000&val=200"
convert_dataset(open_dataset(f"shapes?{images}"), DATA, to="yolo", without=["masks"])

labels = sorted(DATA.glob("**/*.txt"))
print(*sorted(path.relative_to(DATA) for path in DATA.glob("*/*")), sep="\n")
print(f"\n{labels[0].relative_to(DATA)}:\n{labels[0].read_text()}")

# %% [markdown]
# Each line is an object: class, then centre x, centre y, width and height as fractions of the image. Exports have mistakes, so let us make two: a class that
# does not exist, and a box in pixels.

# %%
broken = {path: path.read_text() for path in labels[:2]}
labels[0].write_text("7 0.5 0.5 0.2 0.2\n")
labels[1].write_text("0 64 64 20 20\n")

# %% [markdown]
# ## Check it
#
# The check decodes every image, and says file, line and remedy. An error stops a training before its first step, because nobody can guess what was meant. A
# warning says what training does by itself. In a terminal: `detr data check my_dataset`.

# %%
print(check_dataset(DATA).to_text())

# %% [markdown]
# Correct the files, or write a copy without the errors with `detr data check my_dataset --fix clean`.

# %%
for path, text in broken.items():
    path.write_text(text)

report = check_dataset(DATA)
print(report.to_text())
assert report.errors == 0

# %% [markdown]
# Numbers do not show boxes that are shifted, swapped or missing. Eyes do:

# %%
train = open_dataset(DATA, split="train")


def with_labels(image):
    """An image of the training split with its annotated boxes."""
    objects = train.annotations.take(train.annotation_rows(image))
    boxes = {"boxes": objects.boxes_xyxy, "labels": objects.label}
    return draw_prediction(read_image(train.images[image]), boxes, train.id2label, shortest_side=320)


tile([with_labels(image) for image in range(8)], columns=4)

# %% [markdown]
# ## Plan before you train
#
# A recipe holds every setting of a run, and the words after it change some, as on the command line. `shapes` trains a small model from random weights. For real
# images start from pretrained weights, which are downloaded:
#
# ```python
# recipe = parse_recipe(["small_dataset", "--data", "my_dataset", "--output_dir", "runs/mine"])  # ImageNet backbone, small
# recipe = parse_recipe(["finetune", "--model", "facebook/detr-resnet-50", "--data", "my_dataset", "--output_dir", "runs/mine"])  # GPU
# ```
#
# The plan says what will happen. Read these lines of it before a long run: are the classes yours, is the number of steps what you meant, which
# parameters learn?

# %%
RUN = Path("runs/mine")
shutil.rmtree(RUN, ignore_errors=True)
epochs = "1" if REDUCED else "10"
recipe = parse_recipe(["shapes", "--data", str(DATA), "--output_dir", str(RUN), "--epochs", epochs])
run = prepare_run(recipe)
print(plan(run))

# %% [markdown]
# The preflight tries out what would otherwise fail after an hour. It scores the ground truth against itself, which must give AP 1, loads batches, and measures a
# step of the largest one.

# %%
print(*preflight(run), sep="\n")

# %% [markdown]
# ## Train
#
# One line for each epoch: loss, AP on the validation images, time. In a terminal, all of this is
# `detr train shapes --data my_dataset --output_dir runs/mine`, and `--resume auto` continues a run that was interrupted.

# %%
last = Trainer(run).train()

# %%
draw_curves({"mine": read_log(RUN / "log.jsonl")})

# %% [markdown]
# A healthy run looks like this: AP stays near 0 at first, because DETR must learn where to look before it finds anything; then it rises, and the loss falls on
# training and validation images alike. If the validation loss rises while the other falls, there are too few images for so many epochs. If AP stays at 0:
# [troubleshooting](../docs/troubleshooting.md). `runs/mine/evaluation.html` has all of it as a page.
#
# ## What is good, what is bad
#
# `runs/mine` is a model for `from_pretrained`, the best one of the run. The evaluation is COCO's: AP averages over ten strictnesses of overlap, AP50 asks for half.

# %%
model = DetrForObjectDetection.from_pretrained(RUN).eval()
processor = DetrTorchvisionImageProcessor.from_pretrained(RUN)
val = open_dataset(DATA, split="val")
boxes = CocoEvaluator(val)
batches = build_eval_loader(val, resize_transform(processor), batch_size=8)
print(evaluate(model, batches, processor, val, evaluators=[boxes]).metrics_table())

# %% [markdown]
# An average hides where the errors are. The worst images say more than a decimal of AP, and often they show wrong labels rather than a wrong model. Left the
# prediction, right the truth; dashed boxes are false or missed.

# %%
matches = boxes.matches(iou=0.5)
worst = matches.worst_images(4, thresholds=dict.fromkeys(val.id2label.values(), 0.5))
pictures = draw_predictions(model, processor, val, "detection", [image.image_index for image in worst])
tile([Image.fromarray(picture) for picture in pictures.values()], columns=2, width=1400)

# %% [markdown]
# Many errors of a model as young as this one are a second box on an object that already has one. Leaving an object to a single query is the last thing that DETR
# learns, and the second box usually has a lower score. So part of the answer is the threshold.
#
# ## A threshold for each class
#
# The model gives every query a score; you decide from which score on it counts. Each point of these curves is a threshold: to the right more objects are found,
# and at some point more of what is found is false.

# %%
figure, axes = plt.subplots(figsize=(6, 4.5))
thresholds = {}
for name, curve in matches.curves().items():
    (line,) = axes.plot(curve.recall, curve.precision, label=name)
    point = curve.best_f1()
    if point is not None:  # some prediction of the class is right
        thresholds[name] = point.threshold
        axes.plot(point.recall, point.precision, "o", color=line.get_color())
axes.set(xlabel="recall: share of the objects found", ylabel="precision: share of the finds right", ylim=(0, 1.02))
axes.legend()
print({name: round(threshold, 2) for name, threshold in thresholds.items()})

# %% [markdown]
# The points are the best balance (F1). If a false alarm is expensive, take `curve.at_precision(0.95)` instead. Choose thresholds on one split and report results
# on another, or they will look better than they are.
#
# ## Use it
#
# A new image, of any size, from anywhere: a path, a PIL image, an array. `predict_objects` is the model, the processor before it and the processor after it.

# %%
scene = open_dataset("shapes?size=192&train=0&val=1&seed=5")  # larger than the training images
photo = Image.fromarray(np.asarray(read_image(scene.images[0]).permute(1, 2, 0)))
found = predict_objects(model, processor, photo, threshold=min(thresholds.values(), default=0.5))
for score, label, box in zip(found["scores"], found["labels"], found["boxes"], strict=True):
    print(f"{model.config.id2label[label.item()]:<9} {score:.2f}  at {[round(side) for side in box.tolist()]}")
draw_prediction(photo, found, model.config.id2label)

# %% [markdown]
# The same in a terminal is `detr predict runs/mine photo.jpg`. Transformers' pipelines and Auto classes
# [load the model too](../docs/checkpoints.md#use-a-model-in-python).
#
# **What to change.** The number of images (`train=200`): what does AP lose? The number of `epochs`. The recipe, with your own folder. Then remove the helpers
# that exist only in training, with `--denoising_groups 0 --encoder_supervision false`: that is DETR as in the paper, which needs many more epochs.
