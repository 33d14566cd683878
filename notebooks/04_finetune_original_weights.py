# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From the original's weights to a detector with 107 classes
#
# The original DETR is published as `.pth` files with a class head for COCO. To train it on other classes, people edit `num_classes` in its source, delete
# `class_embed` from the file by hand, and lose what the head has learned. Here is the same walk without editing anything:
#
# 1. the `.pth` file, and what is in it
# 2. convert it, once
# 3. check that it computes the same
# 4. a head with 107 classes: `num_labels=107`
# 5. a head by **name**: classes that COCO knows keep what they have learned
# 6. a dataset with class ids up to 106
# 7. train
# 8. use it, push it, and back to a `.pth`
#
# All of it in two commands, if you are in a hurry:
#
# ```sh
# detr train finetune --model detr-r50 --data my_dataset --output_dir runs/mine    # steps 2 to 7
# detr predict runs/mine photo.jpg                                                 # step 8
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
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from PIL import Image
from transformers.utils import logging

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrTorchvisionImageProcessor
from modeling_detr.commands.convert import main as convert
from modeling_detr.commands.data import main as data
from modeling_detr.commands.train import main as train
from modeling_detr.conversion import export_original
from modeling_detr.conversion.checkpoint_files import find_checkpoint, read_checkpoint
from modeling_detr.errors_detr import ModelDownloadError
from modeling_detr.image_processing_detr import to_rgb
from modeling_detr.visualization import draw_prediction


REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you
FOLDER = Path("runs/finetune_original")
FOLDER.mkdir(parents=True, exist_ok=True)
logging.disable_progress_bar()  # of loading weights

# %% [markdown]
# ## 1. The file
#
# `detr-r50` is the paper's model, 159 MB, downloaded once. Without a network, a small DETR with random weights takes its place below: every step works in
# the same way, but it detects nothing.
#
# Your own file, from the original's training or from a script around it, works too: put its path here.

# %%
SOURCE = "detr-r50"  # or "path/to/checkpoint.pth"

try:
    checkpoint_file = None if REDUCED else find_checkpoint(SOURCE)
except ModelDownloadError as error:
    checkpoint_file = None
    print(error)
IS_RELEASED = checkpoint_file is not None

if not IS_RELEASED:
    torch.manual_seed(0)
    small = DetrConfig(
        backbone="resnet18",
        d_model=64,
        encoder_layers=2,
        decoder_layers=2,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_labels=91,
    )
    checkpoint_file = FOLDER / "stand_in.pth"
    checkpoint_file.unlink(missing_ok=True)
    export_original(DetrForObjectDetection(small), checkpoint_file)
print(checkpoint_file)

# %% [markdown]
# A `.pth` file is a pickle, which can run any code when it is loaded. `read_checkpoint` runs none: it loads the weights, leaves out a few harmless kinds of objects
# that training scripts save beside them, and refuses a file with anything else. The names are the original's.

# %%
checkpoint = read_checkpoint(Path(checkpoint_file))
for name, tensor in checkpoint.weights.items():
    if name.startswith(("query_embed", "input_proj", "class_embed", "bbox_embed")):
        print(f"{name:28} {tuple(tensor.shape)}")
print(f"… {len(checkpoint.weights)} tensors")

# %% [markdown]
# `class_embed` has **92** rows: 91 ids of COCO, of which 11 are used by no class, and "no object" at the end. Your classes fit neither in number nor in order.
#
# ## 2. Convert it
#
# On the command line: `detr convert detr-r50 start`. Nothing is asked: the architecture is read from the shapes. What shapes do not show, such as the number of
# attention heads, comes from the options stored in the file, or is assumed and printed.

# %%
START = FOLDER / "start"
if not START.is_dir():
    convert([str(checkpoint_file), str(START)])
sorted(path.name for path in START.iterdir())

# %% [markdown]
# The folder holds `model.safetensors`, which cannot contain code, `config.json` with the architecture, and the image processor.
#
# ## 3. The same numbers
#
# Converting renames parameters and splits the query, key and value projections, which the original stores in one matrix. Nothing is computed, so the class head
# must be equal bit for bit; the package's tests compare outputs with those of the original for five models.

# %%
original = DetrForObjectDetection.from_pretrained(START).eval()
processor = DetrTorchvisionImageProcessor.from_pretrained(START)
assert torch.equal(original.class_labels_classifier.weight, checkpoint.weights["class_embed.weight"].float())
print(original.config.num_labels, "classes:", ", ".join(original.config.class_names[1:9]), "…")

# %% [markdown]
# With the released weights, put a photo's path here to see them at work.

# %%
PHOTO = None  # "photo.jpg"
picture = None

if PHOTO is not None:
    image = Image.open(PHOTO)
    with torch.no_grad():
        outputs = original(**processor(image))
    (found,) = processor.post_process_object_detection(
        outputs, threshold=0.7, target_sizes=[(image.height, image.width)]
    )
    picture = draw_prediction(to_rgb(image), found, original.config.id2label)
picture

# %% [markdown]
# ## 4. 107 classes
#
# One argument. `ignore_mismatched_sizes=True` says that a head of another size is intended; without it, the mismatch is an error.

# %%
numbered = DetrForObjectDetection.from_pretrained(START, num_labels=107, ignore_mismatched_sizes=True)
print(numbered.class_labels_classifier)

# %% [markdown]
# What has changed? Compare each part with the original: everything is the same, except for the class head, where only the row of "no object" is kept: a number says
# nothing about which class it means.

# %%
parts = {
    "backbone": "model.backbone.",
    "input projection": "model.input_projection.",
    "encoder": "model.encoder.",
    "decoder": "model.decoder.",
    "queries": "model.query_position_embeddings.",
    "box head": "bbox_predictor.",
}
before, after = original.state_dict(), numbered.state_dict()
for part, prefix in parts.items():
    names = [name for name in before if name.startswith(prefix)]
    same = all(torch.equal(before[name], after[name]) for name in names)
    print(f"{part:17} {len(names):4} tensors, {'identical' if same else 'CHANGED'}")
    assert same
assert torch.equal(before["class_labels_classifier.weight"][-1], after["class_labels_classifier.weight"][-1])

# %% [markdown]
# New rows are copies of the row of "no object" with a lower bias: together, all new classes get a tenth of its probability. So the new head detects nothing at first,
# and "no object" has $10/11$ at every query. Had the rows started at random, every query would begin with a false detection, and the first steps would be spent on
# silencing them.

# %%
torch.manual_seed(0)
image = torch.rand(1, 3, 256, 320)  # any image
with torch.no_grad():
    known = original.eval()(image).logits.softmax(-1)[0, :, -1]
    fresh = numbered.eval()(image).logits.softmax(-1)[0, :, -1]
torch.testing.assert_close(fresh, torch.full_like(fresh, 10 / 11))

figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
axis.plot(
    known.sort().values, label="original, 91 classes" if IS_RELEASED else "stand-in with random weights, 91 classes"
)
axis.plot(fresh.sort().values, label="107 new classes")
axis.set(xlabel="query, sorted", ylabel='probability of "no object"', ylim=(0, 1.02))
axis.legend(frameon=False)

# %% [markdown]
# ## 5. By name
#
# Better: give the classes their names. Those that COCO knows keep their rows, wherever they stand; case and spacing do not matter. `label_mapping` helps where names
# differ: a *forklift* may start as a truck.

# %%
names = [f"part {number}" for number in range(107)]
names[3], names[41], names[106] = "Cat", "traffic light", "forklift"
named = DetrForObjectDetection.from_pretrained(
    START,
    id2label=dict(enumerate(names)),
    ignore_mismatched_sizes=True,
    label_mapping={"truck": "forklift"},
)


def rows_of(model):
    """Weight and bias of each class."""
    head = model.class_labels_classifier
    return torch.cat([head.weight, head.bias[:, None]], dim=1).detach()


rows, old_rows = rows_of(named), rows_of(original)
origin = {}
for label, row in enumerate(rows):
    matching = (old_rows == row).all(1).nonzero().flatten().tolist()
    if matching:
        origin[label] = [*original.config.class_names, "no object"][matching[0]]
for label, old in origin.items():
    print(f"row {label:3} of the new head ({[*names, 'no object'][label]}) is that of '{old}'")
assert origin == {3: "cat", 41: "traffic light", 106: "truck", 107: "no object"}

# %%
from_no_object = (rows - rows[-1])[:, :64].T
figure, axis = plt.subplots(figsize=(9, 3), layout="constrained")
shown = axis.imshow(
    from_no_object, aspect="auto", cmap="RdBu", vmin=-from_no_object.abs().max(), vmax=from_no_object.abs().max()
)
axis.set(ylabel="weight (the first 64)", title='each row of the new head, less the row of "no object"')
axis.set_xticks(list(origin)[:-1], ["Cat", "traffic light", "forklift"])
figure.colorbar(shown)

# %% [markdown]
# Three rows carry what COCO has taught; all others wait for your data. Does it matter? Measured with the package's synthetic shapes (three known classes and one new one, 320 images): after 40 steps, AP is .461 with the head kept and .186
# with a fresh head; after 200 steps .521 and .397. The commands are in
# [the documentation](../docs/checkpoints.md#a-class-head-that-changes-size).
#
# ## 6. A dataset
#
# A COCO folder, as annotation tools export it, with ids that jump and go up to 106. Here its images are drawn; put the path of your own instead.

# %%
DATASET = FOLDER / "dataset"
if not DATASET.is_dir():
    sizes = "train=16&val=4" if REDUCED else "train=160&val=40"
    data(["convert", f"shapes?size=128&{sizes}", str(DATASET), "--to", "coco"])
    for file in DATASET.glob("annotations/*.json"):
        content = json.loads(file.read_text())
        new_ids = dict(zip(sorted(one["id"] for one in content["categories"]), (3, 41, 77, 106), strict=True))
        for category in content["categories"]:
            category["id"] = new_ids[category["id"]]
        for annotation in content["annotations"]:
            annotation["category_id"] = new_ids[annotation["category_id"]]
        file.write_text(json.dumps(content))

# %%
data(["check", str(DATASET)])

# %% [markdown]
# Do you need 107 rows, or as many as there are classes? The original indexes its head by category id, so it needs one row more than the largest id. This package
# gives the classes of a dataset consecutive labels and keeps their ids for what it writes: `predictions.json` and the evaluation have 3, 41, 77 and 106 again. So nothing has to be renumbered, and no row is wasted.
#
# ## 7. Train
#
# The plan shows what happens to the head before the first step. `finetune` is meant for a GPU and real images; the options here make it small.

# %%
RUN = FOLDER / "run"
if not (RUN / "model").is_dir():
    train(
        [
            "finetune",
            *("--model", str(START), "--data", str(DATASET), "--output_dir", str(RUN)),
            *("--processor_config.size", "{shortest_edge: 128, longest_edge: 128}", "--transform", "light"),
            *("--learning_rate", "1e-4", "--num_workers", "0", "--warmup_steps", "5", "--log_every_steps", "2"),
            *("--epochs", "1" if REDUCED else "4"),
        ]
    )

# %% [markdown]
# Four epochs of 160 images show that everything fits together, and not what DETR can do: expect an AP near 0. From the released weights on a few hundred photographs, use
# the recipe as it is, with more epochs. What counts in the first minutes is that the losses fall.

# %%
log = [json.loads(line) for line in (RUN / "log.jsonl").read_text().splitlines()]
steps = [(entry["step"], entry["loss"]) for entry in log if entry["kind"] == "step"]
figure, axis = plt.subplots(figsize=(6, 2.6), layout="constrained")
axis.plot(*zip(*steps, strict=True), marker=".")
axis.set(xlabel="step", ylabel="training loss")

# %% [markdown]
# ## 8. Use it, push it, and back
#
# The run's folder loads like any model:

# %%
mine = DetrForObjectDetection.from_pretrained(RUN).eval()
mine_processor = DetrTorchvisionImageProcessor.from_pretrained(RUN)
print(mine.config.id2label)

# %% [markdown]
# On the Hub, after `hf auth login`. The repository gets a model card with the evaluation, and the few source files that `trust_remote_code=True` needs, so others do not have to
# install this package:
#
# ```python
# mine.push_to_hub("your-name/detr-mine")
# mine_processor.push_to_hub("your-name/detr-mine")
# ```
#
# During training, `--push_to_hub your-name/detr-mine` uploads the best model at the end of the run.
#
# And for those who work with the original: a file that it loads with a strict `load_state_dict`. On the command line, `detr convert runs/mine mine.pth --to original`.

# %%
back = FOLDER / "mine.pth"
back.unlink(missing_ok=True)
print("\n".join(export_original(mine, back)))
assert torch.equal(read_checkpoint(back).weights["class_embed.weight"], mine.class_labels_classifier.weight)
