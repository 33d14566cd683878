# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Panoptic segmentation: things, stuff and masks
#
# A detector gives boxes. Panoptic segmentation says for **every pixel** what it belongs to: a *thing*, which can be counted (this star, that star), or *stuff*,
# which cannot (ground, sky, road). DETR treats both alike: a query for each segment, and a mask in place of the box
# ([paper](https://arxiv.org/abs/2005.12872), section 4.4). We follow the original's demo step by step, with a small model of our own: which queries are sure,
# what mask each of them paints, how the masks become one map, and how good that map is.
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
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

from modeling_detr.commands.train import main as train
from modeling_detr.conversion import load_model
from modeling_detr.data import build_eval_loader, open_dataset, read_image, resize_transform
from modeling_detr.evaluation.engine import evaluate
from modeling_detr.evaluation.evaluators.panoptic import PanopticEvaluator
from modeling_detr.visualization import draw_comparison, draw_heat, draw_prediction, tile


REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you

# %% [markdown]
# ## Things and stuff
#
# The built-in images have four kinds of things and one of stuff, the ground. Left the image, right its annotation: each star has a colour of its own, and the
# ground is a single segment, however many pieces it is in.

# %%
val = open_dataset("shapes?size=96&train=0&val=100", split="val", task="panoptic")
print(
    *(f"{label}: {kind.name}, {'thing' if kind.is_thing else 'stuff'}" for label, kind in enumerate(val.categories)),
    sep="\n",
)

NUMBER = 3
image, truth = read_image(val.images[NUMBER]), val.read_panoptic(NUMBER)
tile([draw_prediction(image, {}), draw_prediction(image, truth, val.id2label)], columns=2)

# %% [markdown]
# ## A model
#
# A `DetrForSegmentation` is a detector with a mask head on top. The recipe `shapes_panoptic` trains both at once from random weights.

# %%
RUN = Path("runs/reduced_03" if REDUCED else "runs/panoptic")
images, epochs = ("train=64&val=8", "1") if REDUCED else ("train=8000&val=100", "3")
if not (RUN / "model").is_dir():
    train(["shapes_panoptic", "--data", f"shapes?size=96&{images}", "--epochs", epochs, "--output_dir", str(RUN)])

model, processor = load_model(RUN)
model.eval()
names = model.config.id2label

# %% [markdown]
# The released model knows 80 things and 53 kinds of stuff, such as grass and sky. With a connection and a photo, put this in place of the cell above, and skip
# the cells that compare with the truth:
#
# ```python
# model, processor = load_model("facebook/detr-resnet-50-panoptic")
# model.eval()
# names = model.config.id2label
# image = torchvision.io.decode_image("photo.jpg", mode="RGB")
# ```
#
# ## Which queries are sure?
#
# Each query predicts a class or "no object". The original keeps those with a score above 0.85; most queries fall far below it.

# %%
with torch.no_grad():
    outputs = model(**processor(image))

scores, labels = outputs.logits[0].softmax(-1)[:, :-1].max(-1)  # without "no object", the last class
threshold = 0.0 if REDUCED else 0.85
sure = [query for query in scores.argsort(descending=True).tolist() if scores[query] > threshold][:6]
for query in sure:
    print(f"query {query:2d}: {names[labels[query].item()]} {scores[query]:.2f}")

# %% [markdown]
# ## A mask for each of them
#
# The mask head paints one mask per query, whether it is sure or not: `pred_masks`, here 20 of them, at half the size of the image. They are painted one by one and know
# nothing of each other. Yellow is sure to belong to the query's segment, dark is sure not to.

# %%
print(tuple(outputs.pred_masks.shape))  # images, queries, height, width

figure, axes = plt.subplots(1, len(sure), figsize=(2.4 * len(sure), 2.8), squeeze=False)
for axis, query in zip(axes.flat, sure, strict=True):
    axis.axis("off")
    axis.imshow(outputs.pred_masks[0, query].sigmoid(), vmin=0, vmax=1)
    axis.set_title(f"{names[labels[query].item()]} {scores[query]:.2f}")

# %% [markdown]
# ## Where the masks come from
#
# The head starts from **attention**: each query is compared with every cell of the encoder's map, in several heads, with a softmax over all heads and cells of a
# query together. A small feature pyramid then refines these coarse maps with ever finer maps of the backbone. So the attention is all that tells the masks of two
# queries apart; the image's details are the same for both. Here are the eight heads of one query:

# %%
with torch.no_grad():
    attention = model.bbox_attention(
        outputs.last_hidden_state, outputs.encoder_last_hidden_state, outputs.feature_mask
    )
print(tuple(attention.shape))  # images, queries, heads, height, width of the encoder's map

query = next((query for query in sure if labels[query].item() not in model.config.stuff_labels), sure[0])
heads = attention[0, query]
large = torch.nn.functional.interpolate(heads[None], size=image.shape[-2:], mode="bilinear")[0]
shares = [f"head {head}: {share:.0%} of the attention" for head, share in enumerate(heads.sum((1, 2)).tolist())]
tile([draw_heat(image, heat) for heat in large], columns=4, titles=shares, width=1400)

# %% [markdown]
# Each map is drawn relative to its own maximum, so read the titles too: because the softmax runs over heads and cells together, one head can have nearly all of
# the attention. The map is coarse, one cell for 16 x 16 pixels. That is enough to say *which* star; its points come from the backbone.
#
# ## One map
#
# Masks overlap and leave gaps; a panoptic map may do neither. The post-processing is the original's: every pixel goes to the sure query with the highest mask
# value there, stuff of the same class is merged into one segment, and segments of a few pixels are dropped, until nothing changes.

# %%
(result,) = processor.post_process_panoptic_segmentation(outputs, threshold=threshold, target_sizes=[image.shape[-2:]])
for segment in result["segments_info"]:
    pixels = (result["segmentation"] == segment["id"]).sum().item()
    print(f"segment {segment['id']}: {names[segment['label_id']]:<9} {pixels:5d} pixels, score {segment['score']:.2f}")

draw_comparison(image, result, truth, names)

# %% [markdown]
# `segmentation` holds the number of a segment for each pixel, `segments_info` what each number means. Striped segments are wrong on the left and missed on the right.
# `detr predict runs/panoptic photo.jpg` writes the same for any image.
#
# What the threshold does: with a low one, several queries share a thing, and unsure ones take pixels from sure ones; with a high one, things are missing, and
# the ground may spread over them, because nobody else claims their pixels.

# %%
levels = [0.3, 0.5, 0.7, 0.85, 0.95, 0.99]
maps = [
    processor.post_process_panoptic_segmentation(outputs, threshold=level, target_sizes=[image.shape[-2:]])[0]
    for level in levels
]
titles = [f"threshold {level}: {len(one['segments_info'])} segments" for level, one in zip(levels, maps, strict=True)]
tile([draw_prediction(image, one, names) for one in maps], columns=3, titles=titles, width=1400)

# %% [markdown]
# ## How good is it? Panoptic quality
#
# A predicted and a true segment of the same class **match** if they overlap by more than half (IoU > 0.5). Since segments do not overlap each other, a true segment
# cannot have two matches, so nothing has to be assigned. Then, for each class,
#
# $$\text{PQ} = \underbrace{\frac{\sum \text{IoU of the matches}}{\text{matches}}}_{\text{SQ: how well drawn}} \times
# \underbrace{\frac{\text{matches}}{\text{matches} + \frac12 \text{wrong} + \frac12 \text{missed}}}_{\text{RQ: how many found}}$$
#
# and the PQ of the dataset is the mean over classes. By hand, for one thing class of this image:

# %%
name = names[next(info["label_id"] for info in truth["segments_info"] if val.categories[info["label_id"]].is_thing)]


def masks_of(segments):
    """The masks of all segments of the class."""
    numbers = [info["id"] for info in segments["segments_info"] if names[info["label_id"]] == name]
    return [(segments["segmentation"] == number).numpy() for number in numbers]


predicted, true = masks_of(result), masks_of(truth)
ious = [np.sum(one & other) / np.sum(one | other) for one in predicted for other in true]
matches = [iou for iou in ious if iou > 0.5]
quality = sum(matches) / (0.5 * len(predicted) + 0.5 * len(true))  # matches + ½ wrong + ½ missed
print(f"{name}: {len(predicted)} predicted, {len(true)} true, IoUs of the matches {np.round(matches, 2)}")
print(f"PQ {quality:.3f}")

# %% [markdown]
# The evaluator says the same of this image, and then of all validation images:

# %%
alone = PanopticEvaluator(val.select([NUMBER]))
alone.update([0], [result])
assert np.isclose(alone.compute().per_class[name].pq, quality)

panoptic = PanopticEvaluator(val)
batches = build_eval_loader(val, resize_transform(processor), batch_size=8)
print(evaluate(model, batches, processor, val, evaluators=[panoptic]).metrics_table())

# %% [markdown]
# Read SQ and RQ apart. A low SQ means that masks are rough: train the mask head longer, or use a finer map. A low RQ means that things are missed or have the wrong
# class, and then the detector is to blame, not the masks. Stuff is usually easier than things: it is always there, and there is only one of it.
#
# **What to change.** `NUMBER`, for another image. `epochs`: RQ and SQ do not grow at the same pace. The mask losses, `--model_config.mask_loss_coefficient` and
# `--model_config.dice_loss_coefficient`. With a detector that is already good, train the mask head alone, as the paper does: [masks](../docs/masks.md).
