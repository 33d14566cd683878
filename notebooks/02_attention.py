# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Attention: what a detector looks at, and whether that is a reason
#
# Figures 3, 6 and 7 of [the DETR paper](https://arxiv.org/abs/2005.12872), on a small model of our own. The last part asks what such pictures are worth: it
# takes away what a map marks, and measures whether the detection goes away too.
#
# The same questions from a terminal: `detr explain runs/demo photo.jpg` and `detr slots runs/demo shapes`; [docs/explain.md](../docs/explain.md) has the
# methods and their papers.
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
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from modeling_detr.commands.train import main as train
from modeling_detr.conversion import load_model
from modeling_detr.data import open_dataset, read_image
from modeling_detr.explanation import collect_slots, explain, measure_faithfulness
from modeling_detr.visualization import draw_heat, draw_heats, draw_prediction, draw_slots, tile


# %%
REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you
RUN = Path("runs/reduced_02" if REDUCED else "runs/demo")
LESS = ["--data", "shapes?train=64&val=16", "--epochs", "1"] if REDUCED else []
if not (RUN / "model").is_dir():
    # the same as `detr train shapes --output_dir runs/demo --resume auto`; about five minutes on two CPU cores
    train(["shapes", "--output_dir", str(RUN), "--resume", "auto", *LESS])

model, processor = load_model(RUN)
model.eval()
names = model.config.id2label
index = open_dataset("shapes", split="val")  # drawn on the spot; the model has not seen them
image = read_image(index.images[62])

# %% [markdown]
# With the released model and a photo of yours, only this line and the image change (the model is downloaded once, 160 MB):
#
# ```python
# model, processor = load_model("facebook/detr-resnet-50")
# image = PIL.Image.open("photo.jpg")
# ```
#
# ## Figure 6: where does each detection look?
#
# Every detection comes from one object query, and in the decoder's last layer this query takes what it needs from the image: its cross-attention, one number
# for each cell of the feature map, which sum to 1. Left, the detections; right, the attention of each in a colour of its own.

# %%
threshold = 0.0 if REDUCED else 0.9  # DETR's scores are high; `06_inside_detr` says why
explanation = explain(model, processor, image, threshold, max_detections=10)
found = {"boxes": explanation.boxes, "labels": explanation.labels, "scores": explanation.scores}
looks = explanation.on_image(explanation.maps["attention"])
tile([draw_prediction(image, found, names), draw_heats(image, looks, found, names)], 2)

# %% [markdown]
# In the paper, the decoder attends to the ends of objects, "such as legs and heads". Here it attends to the middle: the objects are simple, and the map has only
# 8×8 cells, so that an object is two or three cells wide. Read any figure 6 with its grid in mind:

# %%
print("detections, decoder layers, heads, rows, columns:", tuple(explanation.cross_attention.shape))

# %% [markdown]
# It is also only the last layer, and the mean of its heads. One detection, layer by layer, and the heads of the last layer one by one:

# %%
first = {name: values[:1] for name, values in found.items()}
layers = explanation.on_image(explanation.cross_attention[0].mean(1))
titles = [f"decoder layer {number} of {len(layers)}" for number in range(1, len(layers) + 1)]
tile([draw_heat(image, layer, first, names) for layer in layers], len(layers), titles, width=900)

# %%
heads = explanation.on_image(explanation.cross_attention[0, -1])
titles = [f"head {number}" for number in range(len(heads))]
tile([draw_heat(image, head, first, names) for head in heads], 4, titles, width=900)

# %% [markdown]
# Most heads look at the object, some at other objects or at a side of the image. A mean hides that.
#
# ## Figure 3: how does the encoder see the image?
#
# Before any query asks, the encoder lets every cell look at every other. The rows of its self-attention for a few points, here the centres of the detections, in
# the last layer:

# %%
centres = ((explanation.boxes[:4, :2] + explanation.boxes[:4, 2:]) / 2).tolist()
encoder = explain(model, processor, image, threshold, points=centres, methods=())
rows = encoder.on_image(encoder.point_attention[:, -1].mean(1))
tile([draw_heat(image, row, points=[centre]) for row, centre in zip(rows, centres, strict=True)], 4, width=1000)

# %% [markdown]
# The paper: "the encoder seems to separate instances already". Test the claim instead of believing it: what share of a point's attention stays inside the box
# of its own object, and what share would, if attention were spread evenly?

# %%
height, width = image.shape[-2:]
ys, xs = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
for row, box, label in zip(rows, explanation.boxes, explanation.labels.tolist(), strict=False):
    inside = (xs > box[0]) & (xs < box[2]) & (ys > box[1]) & (ys < box[3])
    print(f"{names[label]:<10} {(row * inside).sum() / row.sum():.0%} inside, {inside.float().mean():.0%} if even")

# %% [markdown]
# In the paper's figure each point attends to its own animal. Here it attends to the middle of other objects as well, most to those of the same shape, and the share
# inside is hardly more than even: this encoder, two layers deep, tells objects from ground rather than one object from another. A picture of one head, or of another
# point, could have suggested the opposite.
#
# **What to change.** `encoder.point_attention` has all layers and heads: put `[:, 0]` in place of `[:, -1]` for the first layer. Any point works:
# `points=[(x, y)]` in pixels of the image.
#
# ## Figure 7: does each query have a place of its own?
#
# Each query predicts one box in every image, of "no object" too. All of these boxes, one panel per query, as points at their centres:

# %%
slots = collect_slots(model, processor, (read_image(record) for record in index.images[: 16 if REDUCED else 400]))
draw_slots(slots.boxes)

# %% [markdown]
# Each query has a region of its own, though nothing told it to: the loss only sees which query was matched. A query that is often the cheapest for one region gets
# its objects, learns from them, and becomes better there. All points are green because all objects are small squares; in the paper, red and blue points show queries
# for large wide and tall boxes. In numbers, 1 is "always the same", 0 "as different as all boxes":

# %%
statistics = slots.statistics()
print("detections per query", statistics.num_detections.tolist())
print(f"place {statistics.place_specialisation.mean():.2f}, size {statistics.size_specialisation.mean():.2f}")

# %% [markdown]
# ## Is it a reason? Take it away
#
# A map is a claim: "the detection depends on these pixels". So **delete** the pixels in the order of the map, most marked first, and watch the detection's
# score. If the claim is true, it falls early: a small area under the curve. **Insertion** puts pixels into a blurred image in the same order: a true map
# gives a large area.
#
# What is small, and what is large? That depends on object, image and model, so there are two controls:
#
# - **random**: maps of noise. Worse than this, and a map is worthless.
# - **blob**: brightest at the centre of the detected box, fading outwards. It knows where the box is, and nothing about the model. A method that does not beat
#   it shows no more than the box already did.


# %%
def blobs(explanation):
    """A map per detection, (N, h, w): how near each cell is to the centre of the box, in units of its size."""
    sides = zip(explanation.cross_attention.shape[-2:], explanation.extent, strict=True)
    rows, columns = ((torch.arange(cells) + 0.5) / extent for cells, extent in sides)
    height, width = explanation.image_size
    boxes = explanation.boxes / torch.tensor([width, height, width, height])
    (x, y), (w, h) = (boxes[:, :2] + boxes[:, 2:]).T / 2, (boxes[:, 2:] - boxes[:, :2]).T
    distance_y, distance_x = (rows - y[:, None]) / h[:, None], (columns - x[:, None]) / w[:, None]
    return (-4 * (distance_y[:, :, None] ** 2 + distance_x[:, None] ** 2)).exp()


tested = []
for record in index.images[: 2 if REDUCED else 12]:
    pixels = read_image(record)
    explained = explain(model, processor, pixels, threshold, max_detections=4)
    explained = replace(explained, maps={**explained.maps, "blob": blobs(explained)})
    tested.append(measure_faithfulness(model, processor, pixels, explained, steps=4 if REDUCED else 10, num_random=4))

# %% [markdown]
# The mean curves over all detections of these images:

# %%
curves = {name: [result.methods[name] for result in tested] for name in tested[0].methods}
deletion = {name: torch.cat([part.deletion for part in parts]) for name, parts in curves.items()}
insertion = {name: torch.cat([part.insertion for part in parts]) for name, parts in curves.items()}
deletion["random"] = torch.cat([result.random.deletion.mean(0) for result in tested])
insertion["random"] = torch.cat([result.random.insertion.mean(0) for result in tested])

figure, axes = plt.subplots(1, 2, figsize=(11, 3.6), sharey=True, layout="constrained")
for axis, kind, title in (
    (axes[0], deletion, "deletion: lower is better"),
    (axes[1], insertion, "insertion: higher is better"),
):
    for name, curve in kind.items():
        style = {"random": ":", "blob": "--"}.get(name, "-")
        axis.plot(torch.linspace(0, 1, curve.shape[1]), curve.mean(0), style, label=name)
    axis.set(title=title, xlabel="share of pixels")
axes[0].set_ylabel("score of the detection")
axes[1].legend()
plt.show()


# %%
def area(curve):
    return ((curve[:, 1:] + curve[:, :-1]) / 2).mean(1)


print(f"{len(deletion['random'])} detections   deletion  insertion   deletes better than random / than blob")
for name in deletion:
    areas = f"{area(deletion[name]).mean():8.3f} {area(insertion[name]).mean():10.3f}"
    better = [(area(deletion[name]) < area(deletion[control])).float().mean() for control in ("random", "blob")]
    print(f"{name:<16} {areas} {better[0]:20.0%} {better[1]:14.0%}")

# %% [markdown]
# ## Reading it honestly
#
# - All methods beat noise, which is an easy opponent: it marks no object as a whole. Many papers stop here.
# - The blob is the harder one. In our run (31 detections) plain `attention` was as good as the blob, with areas of .093 and .090 under the deletion curve, and
#   `rollout` and `relevance` were worse (.139, .147). So for this model, **the maps tell us no more than the box does**: it looks where the object is.
# - Areas are means over a few dozen detections of one small model. Differences in the second decimal are noise, and another model may rank the methods otherwise.
# - An image with holes is unlike any training image. A score may fall because the image looks odd, not because the reason is gone. Deletion and insertion have
#   different oddities, so look at both.
# - A dark cell is not proof either: the backbone has mixed neighbouring pixels before attention sees them.
#
# **What to change.** `steps` and `num_random` for smoother curves; `METHODS` in
# [`methods.py`](../modeling_detr/explanation/methods.py) to add a method of your own, which then appears in `detr explain` too; and the model: do the same
# conclusions hold for yours?
