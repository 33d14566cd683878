"""Every option of the original's main.py has a counterpart, in the messages and in docs/from_original.md."""

import re
from pathlib import Path

import pytest

from modeling_detr import DetrConfig
from modeling_detr.errors_detr import RecipeError
from modeling_detr.training.recipe import Recipe
from modeling_detr.training.recipe_keys import keys_of
from modeling_detr.training.recipe_parsing import parse_recipe


PAGE = Path(__file__).parents[2] / "docs" / "from_original.md"
# get_args_parser of main.py in facebookresearch/detr: option → default
ORIGINAL = {
    "lr": 1e-4,
    "lr_backbone": 1e-5,
    "batch_size": 2,
    "weight_decay": 1e-4,
    "epochs": 300,
    "lr_drop": 200,
    "clip_max_norm": 0.1,
    "frozen_weights": None,
    "backbone": "resnet50",
    "dilation": False,
    "position_embedding": "sine",
    "enc_layers": 6,
    "dec_layers": 6,
    "dim_feedforward": 2048,
    "hidden_dim": 256,
    "dropout": 0.1,
    "nheads": 8,
    "num_queries": 100,
    "pre_norm": False,
    "masks": False,
    "no_aux_loss": True,
    "set_cost_class": 1,
    "set_cost_bbox": 5,
    "set_cost_giou": 2,
    "mask_loss_coef": 1,
    "dice_loss_coef": 1,
    "bbox_loss_coef": 5,
    "giou_loss_coef": 2,
    "eos_coef": 0.1,
    "dataset_file": "coco",
    "coco_path": None,
    "coco_panoptic_path": None,
    "remove_difficult": False,
    "output_dir": "",
    "device": "cuda",
    "seed": 42,
    "resume": "",
    "start_epoch": 0,
    "eval": False,
    "num_workers": 2,
    "world_size": 1,
    "dist_url": "env://",
}
# Options whose default means something else here, as the page says
OTHER_DEFAULTS = {"frozen_weights", "masks", "dataset_file", "coco_panoptic_path", "output_dir", "resume"}
ROWS = dict(re.findall(r"^\| `--(\w+)[^`]*` \| (.+) \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE))


def keys_in(text):
    return re.findall(r"--([a-z_]+(?:\.[a-z_]+)?)", text)


def default_of(key):
    mapping, _, inner = key.partition(".")
    return getattr(DetrConfig(), inner) if inner else keys_of(Recipe)[mapping].default


def test_the_page_has_every_option_of_the_original_and_no_other():
    assert ROWS.keys() == ORIGINAL.keys()


@pytest.mark.parametrize("option", ORIGINAL)
def test_the_page_names_keys_that_exist_and_have_the_originals_default(option):
    for key in keys_in(ROWS[option]):
        mapping, _, inner = key.partition(".")
        assert mapping in keys_of(Recipe)
        assert not inner or inner in DetrConfig.own_keys()
        if option not in OTHER_DEFAULTS and key != "backbone_weights":
            assert default_of(key) == ORIGINAL[option]


@pytest.mark.parametrize("option", ORIGINAL)
def test_the_option_is_a_key_or_the_error_names_what_the_page_names(option):
    if option in keys_of(Recipe):
        assert option in keys_in(ROWS[option])
        return
    with pytest.raises(RecipeError) as error:
        parse_recipe([f"--{option}", "1"])
    message = str(error.value)
    assert message.startswith(f"--{option}: unknown option; ")
    named = [key for key in keys_in(ROWS[option]) if key in message]
    words = [
        word for word in ("CUDA_VISIBLE_DEVICES", "detr evaluate", "torchrun", "continues after") if word in message
    ]
    assert named or any(word in ROWS[option] for word in words), message


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("mosaic", "did you mean '--mosaic_probability'"),
        ("close_mosaic", "set close_mosaic_share to a share of the epochs"),
        ("hsv_h", "did you mean '--transform_options.hue'"),
        ("hsv_v", "did you mean '--transform_options.brightness'"),
        ("flipud", "did you mean '--transform_options.vertical_flip_probability'"),
    ],
)
def test_augmentation_options_of_ultralytics_are_recognised(option, meant):
    with pytest.raises(RecipeError) as error:
        parse_recipe([f"--{option}", "1"])
    assert meant.replace("'", "") in str(error.value).replace("'", "")
