"""Geometry equal to the original's, policies by name, and clear errors."""

import json
import random
import sys

import pytest
import torch
from reference_cases import REFERENCE
from torchvision import tv_tensors
from torchvision.transforms import v2

from modeling_detr.data import eval_transform, train_transform
from modeling_detr.data.augmentation.geometry import GeometryPlan, crop, horizontal_flip, resize, vertical_flip
from modeling_detr.data.augmentation.original import CROP_MAX, CROP_MIN, OriginalPolicy
from modeling_detr.data.augmentation.policy import SCALES, GeometryPolicy
from modeling_detr.image_processing_detr import resize_output_size


def make_sample(height, width, boxes=(), area=None, masks=False):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    columns = torch.arange(width, dtype=torch.float32).expand(3, height, width)
    sample = {
        "image": tv_tensors.Image((columns * 255 / max(width - 1, 1)).to(torch.uint8)),
        "target": {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
            "class_labels": torch.arange(len(boxes)),
            "area": torch.tensor(area) if area is not None else (boxes[:, 2:] - boxes[:, :2]).prod(1),
            "image_index": 7,
        },
    }
    if masks:
        drawn = torch.zeros(len(boxes), height, width, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(drawn, boxes.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        sample["target"]["masks"] = tv_tensors.Mask(drawn)
    return sample


def _assert_boxes(sample, boxes, area):
    expected = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    torch.testing.assert_close(sample["target"]["boxes"].as_subclass(torch.Tensor), expected, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(sample["target"]["area"], torch.tensor(area, dtype=torch.float32).reshape(-1))
    assert sample["target"]["boxes"].canvas_size == tuple(sample["image"].shape[-2:])


def test_crop_flip_and_resize_equal_the_originals():
    cases = json.loads((REFERENCE / "golden" / "box_geometry.json").read_text())
    assert sum(len(case["kept"]) for case in cases) > 10
    for case in cases:
        sample = crop(make_sample(*case["image_size"], case["boxes"], case["area"]), *case["crop"])
        assert sample["target"]["class_labels"].tolist() == case["kept"]
        _assert_boxes(sample, case["cropped_boxes"], case["cropped_area"])
        sample = horizontal_flip(sample)
        _assert_boxes(sample, case["flipped_boxes"], case["cropped_area"])
        sample = resize(sample, *case["resized_to"])
        assert list(sample["image"].shape[-2:]) == case["resized_to"]
        _assert_boxes(sample, case["resized_boxes"], case["resized_area"])


def test_all_fields_of_an_object_are_dropped_together():
    sample = make_sample(40, 60, [(0, 0, 10, 10), (30, 20, 50, 40), (12, 5, 15, 9)], masks=True)
    target = crop(sample, 10, 20, 30, 40)["target"]
    assert target["class_labels"].tolist() == [1]
    assert {key: len(target[key]) for key in ("boxes", "area", "masks")} == {"boxes": 1, "area": 1, "masks": 1}
    assert target["image_index"] == 7
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert len(sample["target"]["boxes"]) == 3  # the sample given is left as it was


def test_masks_are_dropped_with_their_boxes():
    sample = make_sample(40, 60, [(30, 20, 50, 40)], masks=True)
    for change in (
        lambda it: crop(it, 10, 25, 20, 20),
        horizontal_flip,
        vertical_flip,
        lambda it: resize(it, 80, 120),
    ):
        changed = change(sample)
        x0, y0, x1, y1 = changed["target"]["boxes"][0].int().tolist()
        mask = changed["target"]["masks"][0]
        assert mask.dtype == torch.bool
        assert bool(mask[y0:y1, x0:x1].all())
        assert int(mask.sum()) == (x1 - x0) * (y1 - y0)


def test_an_image_of_the_target_size_is_not_resampled():
    sample = make_sample(128, 128, [(1, 2, 3, 4)])
    assert resize(sample, 128, 128)["image"] is sample["image"]
    assert eval_transform(128, 213)(sample)["image"].data_ptr() == sample["image"].data_ptr()


def test_evaluation_resizes_as_the_original_does():
    rows = json.loads((REFERENCE / "golden" / "resize_sizes.json").read_text())["rows"]
    for height, width, shortest, longest, out_height, out_width in rows:
        plan = eval_transform(shortest, longest).plan(height, width, random.Random(0))
        assert plan == GeometryPlan(out_height, out_width, flip=False, crop=None)


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 427), (333, 500), (1080, 1920), (60, 2000)])
def test_the_originals_policy_draws_the_originals_sizes(height, width):
    policy, generator = train_transform(), random.Random(0)
    whole = {resize_output_size(height, width, scale, 1333) for scale in SCALES}
    flips = crops = 0
    for _ in range(400):
        plan = policy.plan(height, width, generator)
        flips += plan.flip
        if plan.crop is None:
            assert (plan.height, plan.width) in whole
            continue
        crops += 1
        assert min(plan.height, plan.width) in SCALES or max(plan.height, plan.width) in (1332, 1333)
        assert 0 <= plan.crop.top <= plan.crop.top + plan.crop.height <= height
        assert 0 <= plan.crop.left <= plan.crop.left + plan.crop.width <= width
    assert 150 < flips < 250
    assert 150 < crops < 250


def test_a_crop_has_the_originals_extent_in_pixels_of_the_resized_image():
    policy, generator = OriginalPolicy(crop_probability=1), random.Random(0)
    for _ in range(300):
        plan = policy.plan(480, 640, generator)
        shares = (plan.crop.height / 480, plan.crop.width / 640)
        fits = [
            all(
                min(CROP_MIN, side) - 2 <= share * side <= min(side, CROP_MAX) + 2
                for share, side in zip(shares, resize_output_size(480, 640, scale), strict=True)
            )
            for scale in (400, 500, 600)
        ]
        assert any(fits)


def test_a_planned_crop_equals_the_originals_within_one_source_pixel():
    """The composed geometry moves a box to the same place as the original's resize, crop and resize."""
    box = (100.0, 120.0, 300.0, 280.0)
    policy = OriginalPolicy(crop_probability=1, flip_probability=0)
    for seed in range(30):
        generator = random.Random(seed)
        plan = policy.plan(480, 640, generator)
        got = policy.apply(make_sample(480, 640, [box]), plan)
        replay = random.Random(seed)  # the same draws, carried out one after the other
        replay.random(), replay.random()
        sample = make_sample(480, 640, [box])
        sample = resize(sample, *resize_output_size(480, 640, replay.choice(policy.crop_scales)))
        height, width = sample["image"].shape[-2:]
        crop_width = replay.randint(384, min(width, 600))
        left = replay.randint(0, width - crop_width)
        crop_height = replay.randint(384, min(height, 600))
        top = replay.randint(0, height - crop_height)
        sample = crop(sample, top, left, crop_height, crop_width)
        sample = resize(sample, *resize_output_size(crop_height, crop_width, replay.choice(SCALES), 1333))
        assert got["image"].shape == sample["image"].shape
        assert len(got["target"]["boxes"]) == len(sample["target"]["boxes"])
        source_pixel = max(plan.height / plan.crop.height, plan.width / plan.crop.width)
        difference = (got["target"]["boxes"] - sample["target"]["boxes"]).abs()
        assert difference.numel() == 0 or float(difference.max()) <= 1.5 * source_pixel


def test_sizes_follow_from_the_shortest_edge():
    assert train_transform() == OriginalPolicy()
    assert train_transform(scales=SCALES) == OriginalPolicy()
    small = train_transform(scales=128)
    assert (small.scales, small.longest_edge) == ((128,), 213)
    assert (small.crop_scales, small.crop_min, small.crop_max) == ((64, 80, 96), 61, 96)
    assert train_transform(scales=[240, 320], crop_scales=[200], longest_edge=400).crop_scales == (200,)
    assert train_transform("none", scales=[240, 320]).shortest_edge == 320


@pytest.mark.parametrize("name", ["original", "light", "strong", "none"])
@pytest.mark.parametrize(("height", "width"), [(128, 128), (240, 320), (1, 1), (3, 500)])
def test_every_policy_handles_small_images(name, height, width):
    policy = train_transform(name, scales=128)
    generator = random.Random(0)
    for _ in range(30):
        plan = policy.plan(height, width, generator)
        sample = policy.apply(make_sample(height, width, [(0, 0, width, height)]), plan)
        assert sample["image"].shape == (3, plan.height, plan.width)
        assert min(plan.height, plan.width) >= 1


def test_the_light_policy_keeps_images_of_one_size_in_one_shape():
    policy, generator = train_transform("light", scales=240), random.Random(0)
    plans = [policy.plan(480, 640, generator) for _ in range(100)]
    assert {(plan.height, plan.width) for plan in plans} == {(240, 320)}
    assert any(plan.crop for plan in plans)
    assert any(plan.flip for plan in plans)
    assert all(plan.crop is None or plan.crop.height >= 0.7 * 480 - 1 for plan in plans)


def test_the_strong_policy_crops_more_and_keeps_the_shape():
    policy, generator = train_transform("strong", scales=240), random.Random(0)
    plans = [policy.plan(480, 640, generator) for _ in range(400)]
    assert {(plan.height, plan.width) for plan in plans} == {(240, 320)}
    crops = [plan.crop for plan in plans if plan.crop]
    assert 0.7 < len(crops) / len(plans) < 0.8
    shares = [(crop.height / 480, crop.width / 640) for crop in crops]
    assert 0.39 < min(map(min, shares)) < 0.45
    assert all(0.8 < height / width < 1.25 for height, width in shares)
    assert not any(plan.vertical_flip for plan in plans)


def test_vertical_flips_are_an_option_that_leaves_the_rest_as_it_is():
    plain, flipping = (train_transform("light", scales=64, vertical_flip_probability=share) for share in (0, 0.5))
    pairs = [(plain.plan(60, 80, random.Random(k)), flipping.plan(60, 80, random.Random(k))) for k in range(200)]
    assert 70 < sum(flipped.vertical_flip for _, flipped in pairs) < 130
    assert all(flipped._replace(vertical_flip=False) == upright for upright, flipped in pairs)


def test_a_vertical_flip_moves_boxes_with_the_pixels():
    sample = make_sample(40, 60, [(10, 5, 30, 20)])
    flipped = vertical_flip(sample)
    assert flipped["target"]["boxes"].tolist() == [[10, 20, 30, 35]]
    assert torch.equal(flipped["image"], sample["image"].flip(-2))


def test_without_a_generator_a_policy_uses_pythons_random_state():
    policy, sample = train_transform(scales=64), make_sample(60, 80, [(5, 5, 30, 30)])
    random.seed(3)
    first = policy(sample)
    random.seed(3)
    again = policy(sample)
    assert torch.equal(first["image"], again["image"])


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "my_augment.py").write_text(
        "from torchvision.transforms import v2\n"
        "def mirror(sample): return v2.RandomHorizontalFlip(p=1)(sample)\n"
        "class Scale:\n"
        "    def __init__(self, scales=(32,)): self.size = max(scales)\n"
        "    def __call__(self, sample): return v2.Resize([self.size, self.size])(sample)\n"
        "pipeline = v2.Compose([v2.RandomHorizontalFlip(p=1)])\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "my_augment"
    sys.modules.pop("my_augment", None)


def test_a_dotted_name_replaces_the_policy(own_module):
    sample = make_sample(40, 60, [(0, 0, 10, 10)])
    assert train_transform("my_augment.mirror")(sample)["target"]["boxes"].tolist() == [[50, 0, 60, 10]]
    assert isinstance(train_transform("my_augment.pipeline"), v2.Compose)
    assert train_transform("my_augment.Scale", scales=[16, 24], flip_probability=None)(sample)["image"].shape[-1] == 24
    assert not isinstance(train_transform("my_augment.mirror"), GeometryPolicy)


def test_a_dotted_name_is_found_in_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "augment_here.py").write_text("def same(sample): return sample\n")
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    monkeypatch.chdir(tmp_path)
    try:
        assert train_transform("augment_here.same")("sample") == "sample"
    finally:
        sys.modules.pop("augment_here", None)


@pytest.mark.parametrize("name", ["subprocess.Popen", "os.system", "builtins.exec", "numpy.memmap"])
def test_a_recipe_cannot_create_anything_but_a_transform(tmp_path, name):
    trace = tmp_path / "trace"
    options = {
        "subprocess.Popen": {"args": f"touch {trace}", "shell": True},
        "numpy.memmap": {"filename": str(trace), "mode": "w+", "shape": 1},
    }
    with pytest.raises(ValueError, match=r"Python's own modules have no transforms|objects are not callable"):
        train_transform(name, **options.get(name, {}))
    assert not trace.exists()


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("orginal", {}, ValueError, "transform 'orginal': no such policy, .*did you mean 'original'"),
        ("no_such_module.f", {}, ValueError, "'no_such_module.f': cannot be imported .*PYTHONPATH"),
        ("my_augment.miror", {}, ValueError, "has no 'miror'; did you mean 'mirror'"),
        ("my_augment.number", {}, ValueError, "got a int, expected a callable"),
        ("my_augment.mirror", {"scales": (32,)}, ValueError, "got the options scales, but it is not a class"),
        ("original", {"crop_mn": 3}, ValueError, "has no option 'crop_mn'; did you mean 'crop_min'"),
        ("none", {"crop_min": 3}, ValueError, "'none' has no option 'crop_min'; expected one of .*longest_edge, "),
        ("original", {"scales": (0,)}, ValueError, "scales: got 0, expected a number of pixels"),
        ("original", {"scales": ()}, ValueError, "scales: got an empty list"),
        ("original", {"flip_probability": 50}, ValueError, "flip_probability: got 50, expected a number from 0 to 1"),
        (
            "strong",
            {"vertical_flip_probability": 3},
            ValueError,
            "vertical_flip_probability: got 3, expected a",
        ),
        ("light", {"hue": 0.7}, ValueError, "hue: got 0.7, expected a number from 0 to 0.5"),
        ("none", {"brightness": -1}, ValueError, "brightness: got -1, expected a number from 0 to 1"),
        ("original", {"contrast": "much"}, ValueError, "contrast: got 'much', expected a number from 0 to 1"),
        ("original", {"crop_min": 700}, ValueError, "crop_min: got 700, expected at most crop_max \\(600\\)"),
    ],
)
def test_errors_in_a_policy_are_named(own_module, name, options, error, message):
    with pytest.raises(error, match=message):
        train_transform(name, **options)


def test_a_box_with_too_little_visible_area_is_dropped_with_all_its_fields() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [9, 0, 19, 10]])
    sample = {
        "image": tv_tensors.Image(torch.zeros((3, 20, 20), dtype=torch.uint8)),
        "target": {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(20, 20)),
            "class_labels": torch.tensor([0, 1, 2]),
            "area": torch.tensor([100.0, 100, 100]),
            "image_index": 0,
            "masks": tv_tensors.Mask(torch.ones((3, 20, 20), dtype=torch.bool)),
        },
    }
    for least, remaining in ((0.0, [0, 1, 2]), (0.5, [0, 1]), (0.51, [0]), (1.0, [0])):
        target = crop(sample, 0, 0, 20, 10, min_visibility=least)["target"]
        assert target["class_labels"].tolist() == remaining
        assert len(target["boxes"]) == len(target["area"]) == len(target["masks"]) == len(remaining)
    assert train_transform("light", min_visibility=0.3).min_visibility == 0.3
    with pytest.raises(ValueError, match="min_visibility: got 2, expected a number from 0 to 1"):
        train_transform("original", min_visibility=2)
