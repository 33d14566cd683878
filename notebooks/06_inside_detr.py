# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Inside DETR: the paper, line by line, on one image
#
# Keep [the paper](https://arxiv.org/abs/2005.12872) open beside this notebook. Each section takes one of its equations or figures, computes it in a few
# lines from a trained model's own weights, and then **asserts** that the package computes the same numbers. So what you read here is what runs.
#
# | section | in the paper |
# | --- | --- |
# | 1. From image to tokens | figure 2, left; section 3.2 |
# | 2. Where is a token? | positional encodings, appendix A.4 |
# | 3. Attention | equations 3 to 8 |
# | 4. Encoder | figure 10, left |
# | 5. Decoder | figure 10, right; object queries; auxiliary decoding losses |
# | 6. The whole model | figure 2 |
# | 7. Does DETR need non-maximum suppression? | figure 4 |
# | 8. Matching | equation 1 |
# | 9. Loss | equations 2, 9 and 10 |
# | 10. A gradient step, and two hundred more | appendix A.4 |
#
# The model is small and the images are drawn on the spot, so everything runs on a laptop without a network. With `load_model("facebook/detr-resnet-50")` and
# a photo, the same lines work; only the numbers in the shapes change.
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
import math
import os
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch.testing import assert_close
from torchvision.ops import batched_nms, box_convert

from modeling_detr import DetrForObjectDetection
from modeling_detr.boxes_detr import box_distances
from modeling_detr.commands.train import main as train
from modeling_detr.conversion import load_model
from modeling_detr.data import DetectionDataset, DetrCollator, build_eval_loader, open_dataset, resize_transform
from modeling_detr.evaluation.evaluators.coco import CocoEvaluator
from modeling_detr.image_processing_detr import batch_to_device
from modeling_detr.modeling_detr import DetrObjectDetectionOutput
from modeling_detr.training.optimization import build_optimizer
from modeling_detr.visualization import draw_heat, draw_heats, draw_prediction, tile


# %%
REDUCED = "NOTEBOOKS_REDUCED" in os.environ  # set by our tests, which have less time than you
RUN = Path("runs/reduced_06" if REDUCED else "runs/demo")
LESS = ["--data", "shapes?train=64&val=16", "--epochs", "1"] if REDUCED else []
if not (RUN / "model").is_dir():
    # the same as `detr train shapes --output_dir runs/demo --resume auto`; about five minutes on two CPU cores
    train(["shapes", "--output_dir", str(RUN), "--resume", "auto", *LESS])

model, processor = load_model(RUN)
model.eval()
torch.set_grad_enabled(False)  # until section 10
print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")

# %% [markdown]
# The image $x_{\text{img}}$ and its objects $y_i = (c_i, b_i)$: a class, and a box as centre, width and height **relative to the image**, $b_i \in [0, 1]^4$
# (section 3.1).

# %%
index = open_dataset("shapes", split="val")  # the model has not seen these
names = index.id2label
sample = DetectionDataset(index, resize_transform(processor))[62]
image = sample["image"]

batch = DetrCollator(len(names))([sample])
batch = batch_to_device(batch, model.device, processor.image_mean, processor.image_std)  # normalises the pixels
x_img = batch["pixel_values"]
y = batch["labels"][0]

draw_prediction(image, {"boxes": sample["target"]["boxes"], "labels": y["class_labels"]}, names)

# %%
print("x_img", tuple(x_img.shape))
for label, box in zip(y["class_labels"].tolist(), y["boxes"].tolist(), strict=True):
    print(f"c = {label} ({names[label]}), b = {[round(number, 3) for number in box]}")

# %% [markdown]
# ## 1. From image to tokens
#
# *Figure 2, left.* The backbone, a convolutional network, turns the image $x_{\text{img}} \in \mathbb{R}^{3 \times H_0 \times W_0}$ into a feature map
# $f \in \mathbb{R}^{C \times H \times W}$. A 1×1 convolution reduces its channels from $C$ to $d$: that is $z_0$. Flattened, it is a sequence of $HW$ tokens,
# one for each cell of the map. (Tensors here also have a batch as first axis, and tokens before channels.)

# %%
detr = model.model  # the transformer with its backbone, without heads: `DetrModel`
feature_maps, feature_mask, positions = detr.backbone(x_img, None)
f = feature_maps[-1]  # (1, C, H, W)
z_0 = detr.input_projection(f)  # (1, d, H, W)
tokens = z_0.flatten(2).transpose(1, 2)  # (1, HW, d)
H, W = f.shape[-2:]
d = tokens.shape[-1]
print("f", tuple(f.shape), " z_0", tuple(z_0.shape), " tokens", tuple(tokens.shape))

# %%
strongest = f[0].amax((1, 2)).argsort(descending=True)[:11]
figure, axes = plt.subplots(2, 6, figsize=(12, 4.2), layout="constrained")
axes[0, 0].imshow(image.permute(1, 2, 0))
for axis, channel in zip(axes.flat[1:], strongest.tolist(), strict=True):
    axis.imshow(f[0, channel], cmap="viridis")
    axis.set_title(f"channel {channel}", fontsize=9)
for axis in axes.flat:
    axis.axis("off")

# %% [markdown]
# Each channel answers to something else: a tip, an edge, a side of the image. A cell covers 16×16 pixels of this image (32×32 in the paper's models), and yet DETR
# will find boxes that are far more exact than that: a token holds $d$ numbers, and where an edge runs inside the cell is among them.
#
# ## 2. Where is a token?
#
# *Appendix A.4.* Attention treats its input as a set; it does not know which token is beside which. So each token gets a positional encoding: for its row and
# for its column, $d/2$ sines and cosines of decreasing frequency. They are not added once at the start, as in the original transformer, but to queries and keys
# in **every** attention layer.

# %%
fine = detr.backbone.position_embedding(torch.ones(1, 32, 32, dtype=torch.bool))[0]  # as if the map had 32 x 32 cells
figure, axes = plt.subplots(1, 4, figsize=(13, 3.2), layout="constrained")
axes[0].imshow(fine[0, :, d // 2 :].T, aspect="auto", cmap="RdBu")
axes[0].set(title="half of d: the column", xlabel="column", ylabel="channel")
axes[1].imshow(fine[:, :, 2], cmap="RdBu")
axes[1].set(title="channel 2, of the row")
axes[2].imshow(fine[:, :, d // 2 + 2], cmap="RdBu")
axes[2].set(title=f"channel {d // 2 + 2}, of the column")
axes[3].imshow(fine @ fine[8, 20], cmap="viridis")
axes[3].plot(20, 8, "r+")
axes[3].set(title="dot products with the cell +")
plt.show()

# %% [markdown]
# The last picture is why this works: two encodings are the more alike, the closer their cells are. A query can ask for "near here" by a dot product.
#
# **What to change.** Most channels on the left hardly vary: the original's longest wavelength is 10,000 times the shortest, made for sentences rather than for
# maps of thirty cells. `position_temperature: 20` in the config uses more of them; [small datasets learn much sooner with
# it](../docs/recipes.md).
#
# ## 3. Attention
#
# *Equations 3 to 8.* One function serves encoder and decoder: queries $X_{\text{q}}$ look at $X_{\text{kv}}$. Here it is with the names of the paper:
#
# $$[Q;K;V] = [T'_1(X_{\text{q}} + P_{\text{q}});\ T'_2(X_{\text{kv}} + P_{\text{kv}});\ T'_3 X_{\text{kv}}] \quad \tag{7}$$
#
# $$\alpha_{i,j} = \frac{e^{\frac{1}{\sqrt{d'}} Q_i^T K_j}}{Z_i}, \qquad \text{attn}_i = \sum_j \alpha_{i,j} V_j \quad \tag{8}$$
#
# $$X'_{\text{q}} = [\text{attn}(X_{\text{q}}, X_{\text{kv}}, T_1); \dots; \text{attn}(X_{\text{q}}, X_{\text{kv}}, T_M)] \quad \tag{5}$$
#
# $$\tilde X_{\text{q}} = \text{layernorm}(X_{\text{q}} + \text{dropout}(L X'_{\text{q}})) \quad \tag{6}$$
#
# Positions are in queries and keys, but not in values: they steer where to look, not what is fetched.


# %%
def mh_attn(X_q, X_kv, P_q, P_kv, layer, layernorm):
    """Equation 3, without dropout: (1, N_q, d) and (1, N_kv, d) → (1, N_q, d), and the weights (M, N_q, N_kv)."""
    M = layer.num_heads

    def heads(states):  # (1, N, d) → (M, N, d'), with d' = d / M
        return states[0].unflatten(-1, (M, -1)).transpose(0, 1)

    Q, K, V = heads(layer.q_proj(X_q + P_q)), heads(layer.k_proj(X_kv + P_kv)), heads(layer.v_proj(X_kv))  # (7)
    alpha = (Q @ K.transpose(1, 2) / math.sqrt(Q.shape[-1])).softmax(-1)  # (8)
    X = (alpha @ V).transpose(0, 1).flatten(1)[None]  # (5): the heads side by side, (1, N_q, d)
    return layernorm(X_q + layer.out_proj(X)), alpha  # (6): L is `out_proj`


def ffn(X, layer):
    """Two layers with ReLU between them, then as in equation 6."""
    return layer.final_layer_norm(X + layer.fc2(F.relu(layer.fc1(X))))


# %% [markdown]
# Self-attention is the case $X_{\text{q}} = X_{\text{kv}}$ (equation 4). The first encoder layer, by hand and by the package:

# %%
P = positions.flatten(1, 2)  # (1, HW, d)
layer = detr.encoder.layers[0]
X, alpha = mh_attn(tokens, tokens, P, P, layer.self_attn, layer.self_attn_layer_norm)
X = ffn(X, layer)

theirs, their_alpha = layer(tokens, P, mask=None, output_attentions=True)
assert_close(X, theirs)
assert_close(alpha, their_alpha[0])
print("weights", tuple(alpha.shape), "; each row sums to", round(alpha.sum(-1).mean().item(), 6))

# %% [markdown]
# Row $i$ of $\alpha$ says where token $i$ looks. Laid out as a map over the image, for a token in the middle of an object, in each of the $M$ heads:


# %%
def on_image(weights):
    """(…, HW) weights of tokens → (…, height, width)."""
    maps = weights.reshape(1, -1, H, W)
    enlarged = F.interpolate(maps, size=tuple(image.shape[-2:]), mode="bilinear")
    return enlarged.view(*weights.shape[:-1], *image.shape[-2:])


def draw_heads(weights, point):
    """One picture for each head's (HW,) weights."""
    titles = [f"head {head}" for head in range(len(weights))]
    return tile([draw_heat(image, head, points=[point]) for head in on_image(weights)], 4, titles, width=1000)


centre_x, centre_y = y["boxes"][0, :2].tolist()
token = int(centre_y * H) * W + int(centre_x * W)
point = centre_x * image.shape[-1], centre_y * image.shape[-2]
draw_heads(alpha[:, token], point)

# %% [markdown]
# ## 4. Encoder
#
# *Figure 10, left.* The same layer again and again, each with weights of its own. The result is the memory that the decoder reads.
#
# ```text
# tokens ──► + ──► self-attention ──► + ──► norm ──► FFN ──► + ──► norm ──► tokens       × encoder_layers
#            ▲ positions, to queries and keys only
# ```

# %%
memory = tokens
for layer in detr.encoder.layers:
    memory, alpha = mh_attn(memory, memory, P, P, layer.self_attn, layer.self_attn_layer_norm)
    memory = ffn(memory, layer)

encoded = detr.encoder(tokens, P, None, output_attentions=False, output_states=False)
assert_close(memory, encoded.memory)
draw_heads(alpha[:, token], point)

# %% [markdown]
# The heads of the last layer, for the same token: in our run, several now pick out objects, most of all its own and the other of the same shape. Notebook
# `02_attention` looks at more points: the paper's figure 3.
#
# ## 5. Decoder
#
# *Figure 10, right.* $N$ object queries, learned vectors, ask the memory for objects, all in parallel. In each layer they first attend to each other
# (self-attention), then to the image (cross-attention):
#
# ```text
# states ──► self-attention ──► + norm ──► cross-attention ──► + norm ──► FFN ──► + norm ──► states     × decoder_layers
#            ▲ object queries              ▲ object queries to queries, positions to keys; values: memory
# ```
#
# The states start as **zeros**; everything that tells one query from another is in its object query, which acts as the positional encoding $P_{\text{q}}$. The
# same two heads read every layer's states, through one more shared layer norm ("auxiliary decoding losses", section 3.2), so we can watch the boxes form.

# %%
object_queries = detr.query_position_embeddings.weight[None]  # (1, N, d)
N = object_queries.shape[1]
states = torch.zeros_like(object_queries)
predictions = []
for layer in detr.decoder.layers:
    states, between_queries = mh_attn(
        states, states, object_queries, object_queries, layer.self_attn, layer.self_attn_layer_norm
    )
    if not predictions:
        first_self_attention = states
    states, alpha = mh_attn(states, memory, object_queries, P, layer.encoder_attn, layer.encoder_attn_layer_norm)
    states = ffn(states, layer)
    logits = model.class_labels_classifier(detr.decoder.layernorm(states))  # (1, N, C + 1)
    boxes = model.bbox_predictor(detr.decoder.layernorm(states)).sigmoid()  # (1, N, 4)
    predictions.append({"logits": logits, "pred_boxes": boxes})
print("object queries", tuple(object_queries.shape), " logits", tuple(logits.shape), " boxes", tuple(boxes.shape))

# %% [markdown]
# The package's forward pass gives the same in every layer:

# %%
outputs = model(x_img)
assert_close(outputs.logits, logits, rtol=1e-4, atol=1e-4)
assert_close(outputs.pred_boxes, boxes, rtol=1e-4, atol=1e-4)
for ours, theirs in zip(predictions, outputs.auxiliary_outputs, strict=False):
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


# %%
def objects_of(layer, threshold=0.9):
    """The objects that one decoder layer predicts, in pixels; section 9 says why the threshold is high."""
    fields = DetrObjectDetectionOutput(logits=layer["logits"], pred_boxes=layer["pred_boxes"])
    (objects,) = processor.post_process_object_detection(fields, threshold, target_sizes=[tuple(image.shape[-2:])])
    return objects


tile(
    [draw_prediction(image, objects_of(layer), names) for layer in predictions],
    len(predictions),
    [f"decoder layer {number} of {len(predictions)}" for number in range(1, len(predictions) + 1)],
    width=1200,
)

# %% [markdown]
# **A detail of appendix A.3 that you can check**: the first self-attention could be left out. All states are zero, so all values are the same vector, and
# whatever the weights are, every query gets the same:

# %%
assert_close(first_self_attention, first_self_attention[:, :1].expand_as(first_self_attention))

# %% [markdown]
# That is why one decoder layer cannot know which objects other queries have taken. Afterwards they can tell each other: the self-attention of the last layer, as
# the mean over heads, says who attends to whom.

# %%
plt.figure(figsize=(5, 4))
plt.imshow(between_queries.mean(0), cmap="magma")
plt.xlabel("query that is attended to")
plt.ylabel("query")
plt.xticks(range(0, N, 2))
plt.yticks(range(0, N, 2))
plt.colorbar()
plt.show()

# %% [markdown]
# And the cross-attention says where in the image each query takes its information from. For the queries with the highest scores, as many as there are objects,
# this is the paper's figure 6.

# %%
probability = logits[0].softmax(-1)  # (N, C + 1)
score, label = probability[:, :-1].max(-1)
kept = score.topk(len(y["boxes"])).indices
corners = box_convert(boxes[0, kept], "cxcywh", "xyxy") * torch.tensor(image.shape[-2:]).flip(0).repeat(2)
draw_heats(
    image, on_image(alpha.mean(0)[kept]), {"boxes": corners, "labels": label[kept], "scores": score[kept]}, names
)

# %% [markdown]
# ## 6. The whole model
#
# *Figure 2.* The same picture as in the paper, with this image's own numbers. In code it is `DetrModel.forward`
# ([`modeling_detr.py`](../modeling_detr/modeling_detr.py)), which reads in the same order: backbone, positions, encoder, decoder; and
# `DetrForObjectDetection` adds the two heads.

# %%
panels = [
    (image.permute(1, 2, 0), f"image\n{tuple(image.shape)}"),
    (f[0, strongest[0]], f"backbone f\n{tuple(f.shape[1:])}"),
    (positions[0, ..., d // 2], f"+ positions\n{tuple(positions.shape[1:])}"),
    (memory[0].norm(dim=-1).view(H, W), f"encoder: memory\n{tuple(memory.shape[1:])}"),
    (object_queries[0], f"object queries\n{tuple(object_queries.shape[1:])}"),
    (states[0], f"decoder: states\n{tuple(states.shape[1:])}"),
    (probability, f"FFN: classes, and ∅ last\n{tuple(probability.shape)}"),
    (draw_prediction(image, objects_of(predictions[-1]), names), f"FFN: boxes\n{tuple(boxes.shape[1:])}"),
]
figure, axes = plt.subplots(1, len(panels), figsize=(19, 3), layout="constrained")
for axis, (panel, title) in zip(axes, panels, strict=True):
    axis.imshow(panel, aspect="auto", interpolation="nearest")
    axis.set_title(title, fontsize=10)
    axis.set(xticks=[], yticks=[])
for left in axes[:-1]:
    left.annotate("→", (1.06, 0.45), xycoords="axes fraction", fontsize=16, ha="center")
plt.show()

# %% [markdown]
# ## 7. Does DETR need non-maximum suppression?
#
# *Figure 4.* Other detectors predict an object several times and then remove duplicates (NMS). DETR is trained to predict each once. Every decoder layer is
# scored here over the validation images, as it is and after NMS:

# %%
IMAGES = 16 if REDUCED else 400
part = index.select(range(IMAGES))
scores = {(layer, nms): CocoEvaluator(part) for layer in range(len(predictions)) for nms in (False, True)}


def without_duplicates(objects):
    """What NMS leaves of the objects of one image."""
    keep = batched_nms(objects["boxes"], objects["scores"], objects["labels"], iou_threshold=0.5)
    return {name: values[keep] for name, values in objects.items()}


for images in build_eval_loader(part, resize_transform(processor), batch_size=32):
    images = batch_to_device(images, model.device, processor.image_mean, processor.image_std)
    out = model(images["pixel_values"], images["pixel_mask"])
    where = [int(labels["image_index"]) for labels in images["labels"]]
    sizes = [(part.images[image].height, part.images[image].width) for image in where]
    layers = [*out.auxiliary_outputs, {"logits": out.logits, "pred_boxes": out.pred_boxes}]
    for number, fields in enumerate(layers):
        results = processor.post_process_object_detection(DetrObjectDetectionOutput(**fields), 0.0, target_sizes=sizes)
        scores[number, False].update(where, results)
        scores[number, True].update(where, [without_duplicates(objects) for objects in results])

# %%
metrics = {key: evaluator.compute() for key, evaluator in scores.items()}
numbers = range(1, len(predictions) + 1)
for nms, style in ((False, "o-"), (True, "s--")):
    for name, colour in (("ap", "C0"), ("ap50", "C1")):
        values = [getattr(metrics[number - 1, nms], name) for number in numbers]
        plt.plot(numbers, values, style, color=colour, label=f"{name.upper()}{' with NMS' if nms else ''}")
plt.xticks(numbers)
plt.xlabel("decoder layer")
plt.legend()
plt.show()

# %% [markdown]
# Later layers are better, as in the paper. But there NMS helps the first layer only, and does harm after the last. Here it helps in all layers: a model that has
# trained for three epochs still predicts some objects twice; the paper's trained for 500.
#
# **What to change.** Does the gap close? `detr train shapes --epochs 12 --output_dir runs/longer`, then `RUN = Path("runs/longer")`.
#
# ## 8. Matching
#
# *Equation 1.* Before a loss can be computed, it has to be decided **which query answers for which object**. The cost of a pair is
#
# $$\mathcal{L}_{\text{match}}(y_i, \hat y_{\sigma(i)}) = -\hat p_{\sigma(i)}(c_i) + \mathcal{L}_{\text{box}}(b_i, \hat b_{\sigma(i)}), \qquad
# \mathcal{L}_{\text{box}} = \lambda_{\text{iou}} \mathcal{L}_{\text{iou}} + \lambda_{\text{L1}} \lVert b_i - \hat b_{\sigma(i)} \rVert_1$$
#
# and the assignment is the cheapest that gives each object a query of its own:
#
# $$\hat\sigma = \underset{\sigma}{\text{arg min}} \sum_i \mathcal{L}_{\text{match}}(y_i, \hat y_{\sigma(i)}) \quad \tag{1}$$
#
# Note that the cost has the probability of the class, not its logarithm, which makes it commensurable with the box terms. Pairs with "no object" cost nothing, so
# they are left out.

# %%
config = model.config
lambda_iou, lambda_L1 = config.giou_cost, config.bbox_cost


def match_costs(logits, boxes, y):
    """(N, C + 1) logits, (N, 4) boxes and the objects of one image → the terms (objects, N) of equation 1."""
    l1, iou_loss = box_distances(boxes[None], y["boxes"][:, None])  # |b - b̂|₁ and 1 - GIoU (equation 10)
    return {
        "class": -logits.softmax(-1)[:, y["class_labels"]].T,
        "L1": lambda_L1 * l1,
        "GIoU": lambda_iou * iou_loss,
    }


def show_costs(logits, boxes, title):
    """Draws the costs and the optimal assignment, and returns the latter: objects and their queries."""
    terms = match_costs(logits, boxes, y)
    total = sum(terms.values())
    rows, columns = linear_sum_assignment(total)
    figure, axes = plt.subplots(4, 1, figsize=(11, 7), sharex=True, layout="constrained")
    figure.suptitle(title)
    for axis, (name, cost) in zip(axes, [*terms.items(), ("sum", total)], strict=True):
        shown = axis.imshow(cost, aspect="auto", cmap="viridis_r")
        axis.set_title(name, fontsize=10, loc="left")
        axis.set_yticks(range(len(y["boxes"])), [names[label] for label in y["class_labels"].tolist()])
        figure.colorbar(shown, ax=axis)
    axes[-1].plot(columns, rows, "rs", markersize=14, fillstyle="none", markeredgewidth=2)
    axes[-1].plot(total.argmin(1), range(len(total)), "w.")
    axes[-1].set(xlabel="query", xticks=range(N))
    plt.show()
    return rows, columns


rows, columns = show_costs(
    logits[0],
    boxes[0],
    "The trained model: red squares, the optimal assignment; white dots, the cheapest query of each object",
)

# %% [markdown]
# The package's `HungarianMatcher` gives the same pairs (its GIoU term is $-\text{GIoU}$ instead of $1 - \text{GIoU}$, a constant that changes no assignment):

# %%
(assignment,) = model.criterion.matcher(logits, boxes, [y])
assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == dict(
    zip(assignment.targets.tolist(), assignment.queries.tolist(), strict=True)
)
assignment

# %% [markdown]
# For a trained model the choice is easy: one query is much cheaper than all others. At the start, all queries predict nearly the same, and tiny differences decide.
# Several objects may want the same query (white dots in one column), and one to one means that only one of them gets it.

# %%
torch.manual_seed(0)
untrained = DetrForObjectDetection(config).eval()
first = untrained(x_img)
_ = show_costs(first.logits[0], first.pred_boxes[0], "A model with random weights")

# %% [markdown]
# ## 9. Loss
#
# *Equation 2.* With the assignment fixed, each query has a target: its object's class and box, or "no object" $\varnothing$.
#
# $$\mathcal{L}_{\text{Hungarian}} = \sum_{i=1}^{N} \left[ -\log \hat p_{\hat\sigma(i)}(c_i) + \mathbb{1}_{\{c_i \neq \varnothing\}} \mathcal{L}_{\text{box}}(b_i,
# \hat b_{\hat\sigma(i)}) \right] \quad \tag{2}$$
#
# $$\mathcal{L}_{\text{box}}(b, \hat b) = \lambda_{\text{iou}} \mathcal{L}_{\text{iou}}(b, \hat b) + \lambda_{\text{L1}} \lVert b - \hat b \rVert_1 \quad \tag{9}$$
#
# $$\mathcal{L}_{\text{iou}}(b, \hat b) = 1 - \left( \frac{|b \cap \hat b|}{|b \cup \hat b|} - \frac{|B(b, \hat b) \backslash b \cup \hat b|}{|B(b, \hat b)|} \right)
# \quad \tag{10}$$
#
# $B$ is the smallest box around both. Equation 10, from corners:


# %%
def iou_loss(b, b_hat):
    """(…, 4) boxes as centre and size → (…) losses."""
    b, b_hat = box_convert(b, "cxcywh", "xyxy"), box_convert(b_hat, "cxcywh", "xyxy")

    def area(top_left, bottom_right):
        return (bottom_right - top_left).clamp(min=0).prod(-1)

    intersection = area(torch.maximum(b[..., :2], b_hat[..., :2]), torch.minimum(b[..., 2:], b_hat[..., 2:]))
    union = area(b[..., :2], b[..., 2:]) + area(b_hat[..., :2], b_hat[..., 2:]) - intersection
    around = area(torch.minimum(b[..., :2], b_hat[..., :2]), torch.maximum(b[..., 2:], b_hat[..., 2:]))
    return 1 - (intersection / union - (around - union) / around)


assert_close(iou_loss(y["boxes"][:, None], boxes), box_distances(boxes, y["boxes"][:, None])[1])

# %% [markdown]
# Why not the IoU alone? As soon as two boxes do not touch, it is 0 and has no gradient; equation 10 still says which way to move. A box of the same size,
# shifted sideways:

# %%
shift = torch.linspace(-1, 1, 201)
fixed = torch.tensor([0.5, 0.5, 0.2, 0.2]).expand(201, 4)
moved = fixed + torch.stack([shift, *[torch.zeros(201)] * 3], -1)
overlap = (0.2 - shift.abs()).clamp(min=0) * 0.2
plt.figure(figsize=(6, 3))
plt.plot(shift, 1 - overlap / (0.08 - overlap), label="1 - IoU")
plt.plot(shift, iou_loss(fixed, moved), label="1 - GIoU (equation 10)")
plt.plot(shift, (fixed - moved).abs().sum(-1), label="L1")
plt.xlabel("shift")
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Now the loss of each decoder layer. Two details that the equation leaves out: the log-probability of $\varnothing$ is weighted with 0.1, because most queries
# have no object; and the terms are normalised, those of the boxes by the number of objects (section 3.1), that of the classes by the sum of its weights (the
# original's code).
#
# The weight 0.1 has a side effect that every user of DETR meets: **scores are too high**. A query that has an object in half of all such cases is punished ten
# times less for saying "object" when there is none, so it says 0.91 rather than 0.5. That is why thresholds of 0.7 or 0.9 are usual for DETR, and 0.9 here.

# %%
no_object = config.num_labels


def hungarian_loss(logits, boxes):
    """(N, C + 1) logits and (N, 4) boxes of one layer → the three weighted terms."""
    objects, queries = linear_sum_assignment(sum(match_costs(logits, boxes, y).values()))
    c = torch.full((N,), no_object)
    c[queries] = y["class_labels"][objects]
    weight = torch.where(c == no_object, config.eos_coefficient, 1.0)
    log_p = logits.log_softmax(-1)[torch.arange(N), c]
    b, b_hat = y["boxes"][objects], boxes[queries]
    return {
        "class": -(weight * log_p).sum() / weight.sum(),
        "L1": config.bbox_loss_coefficient * (b - b_hat).abs().sum() / len(b),
        "GIoU": config.giou_loss_coefficient * iou_loss(b, b_hat).sum() / len(b),
    }


terms = [hungarian_loss(layer["logits"][0], layer["pred_boxes"][0]) for layer in predictions]
by_hand = sum(sum(layer.values()) for layer in terms)
by_package = model(x_img, labels=[y]).loss
assert_close(by_hand, by_package, rtol=1e-4, atol=1e-4)
print(f"by hand {by_hand:.6f}, by the package {by_package:.6f}")

# %%
bottom = torch.zeros(len(terms))
plt.figure(figsize=(6, 3))
for name in terms[0]:
    values = torch.stack([layer[name] for layer in terms])
    plt.bar([f"layer {number}" for number in numbers], values, bottom=bottom, label=name)
    bottom += values
plt.ylabel("loss of this image")
plt.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Each layer is matched by itself, and the total is the sum over layers. Training logs the same terms without their weights as `loss_ce`, `loss_bbox` and
# `loss_giou`, those of the earlier layers with a number:

# %%
{name: round(value.item(), 4) for name, value in model(x_img, labels=[y]).loss_dict.items()}

# %% [markdown]
# ## 10. A gradient step, and two hundred more
#
# *Appendix A.4.* AdamW, weight decay, and gradients clipped to a norm of 0.1. How long is the gradient in each part, for a model with random weights?

# %%
torch.set_grad_enabled(True)
torch.manual_seed(0)
learner = DetrForObjectDetection(config).train()
optimizer = build_optimizer(learner, learning_rate=5e-4, backbone_learning_rate=5e-4, weight_decay=1e-4)

learner(x_img, labels=[y]).loss.backward()
parts = {
    "backbone": learner.model.backbone,
    "encoder": learner.model.encoder,
    "decoder": learner.model.decoder,
    "object queries": learner.model.query_position_embeddings,
    "class head": learner.class_labels_classifier,
    "box head": learner.bbox_predictor,
}
for name, part_of_model in parts.items():
    gradients = [parameter.grad.flatten() for parameter in part_of_model.parameters() if parameter.grad is not None]
    print(f"{name:<15} gradient norm {torch.cat(gradients).norm():8.3f}")

# %% [markdown]
# Every part gets one, "end to end". The decoder's is by far the longest, and that has a reason: its states start as zeros, and the layer norm after the first
# self-attention divides by their standard deviation, which is then $\sqrt{10^{-5}}$. So gradients through it grow 316 times. Clipping keeps such a step small.
#
# Only the assignment has no gradient; it acts as a constant, and can jump from one step to the next. Watch it while the model learns this one image:

# %%
STEPS = 8 if REDUCED else 200
history, owners, pictures = [], [], {}
for step in range(STEPS + 1):
    optimizer.zero_grad()
    out = learner(x_img, labels=[y])
    (matched,) = learner.criterion.matcher(out.logits, out.pred_boxes, [y])
    owner = torch.full((len(y["boxes"]),), -1)
    owner[matched.targets] = matched.queries
    owners.append(owner)
    history.append({name: out.loss_dict[name].item() for name in ("loss_ce", "loss_bbox", "loss_giou")})
    if step in (0, STEPS // 8, STEPS // 4, STEPS):
        layer = {"logits": out.logits.detach(), "pred_boxes": out.pred_boxes.detach()}
        pictures[f"step {step}"] = draw_prediction(image, objects_of(layer, 0.5), names)
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(learner.parameters(), 0.1)
    optimizer.step()

tile(list(pictures.values()), len(pictures), list(pictures), width=1200)

# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 3.6), layout="constrained")
for name in history[0]:
    axes[0].plot([entry[name] for entry in history], label=name)
axes[0].set(title="terms of the last layer", xlabel="step", yscale="log")
axes[0].legend()
for number, label in enumerate(y["class_labels"].tolist()):
    axes[1].plot([owner[number] for owner in owners[: STEPS // 4]], label=names[label])
axes[1].set(
    title="query that each object is matched to, at first", xlabel="step", ylabel="query", yticks=range(0, N, 2)
)
axes[1].legend()
plt.show()

# %% [markdown]
# In the first steps the objects change their queries: the same query is pulled towards one object and then towards another, which is one reason why DETR learns
# slowly. Once a query is clearly the best for an object, the assignment stays, and boxes and classes sharpen.
#
# **What to change.** This model has one image to remember. For real training, `--denoising_groups 3` adds queries whose object is known from the start, so that they
# need no matching ([recipes](../docs/recipes.md)).
#
# ## Where each part of the paper is
#
# | paper | in the code | in the notebooks |
# | --- | --- | --- |
# | figure 2 | `DetrModel.forward`, `DetrForObjectDetection` | here, section 6 |
# | figures 3, 6, 7 | `modeling_detr.explanation`, `detr explain` | `02_attention` |
# | figure 4 | `auxiliary_outputs` | here, section 7 |
# | figures 8, 9; equation 11 (dice loss) | `segmentation_detr.py`, `MaskCriterion` | `03_panoptic` |
# | figure 10 | `DetrEncoderLayer`, `DetrDecoderLayer` | here, sections 4 and 5 |
# | equation 1 | `HungarianMatcher` | here, section 8 |
# | equations 2, 9, 10 | `SetCriterion`, `box_distances`, `generalized_iou` | here, section 9 |
# | equations 3 to 8 | `DetrAttention`, `TransformerLayer` | here, section 3 |
# | figures 1, 5, 11, 12 | | an overview, and results on COCO's images: not repeated |
# | appendix A.4, training | recipes `detr_r50`, … | here, section 10; `01_train_your_data` |
