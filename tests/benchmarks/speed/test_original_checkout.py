import sys

import datasets
import pytest

from modeling_detr import DetrConfig
from modeling_detr.benchmarks.speed.original_checkout import OriginalCheckout
from modeling_detr.errors_detr import BenchmarkError


FILES = ("main", "engine", "models/__init__", "models/backbone", "util/__init__", "util/misc", "datasets/__init__")
FILES += ("datasets/coco", "datasets/coco_eval", "datasets/transforms")


@pytest.fixture
def checkout(tmp_path):
    """A folder with the modules of the original, which only have their names."""
    folder = tmp_path / "detr"
    for name in FILES:
        path = folder / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("import util.misc\n" if name == "main" else "")
    return folder


def test_a_missing_checkout_is_an_error_that_says_where_to_get_it(tmp_path):
    with pytest.raises(
        BenchmarkError, match=r"--original: folder '.*nowhere' does not exist; pass the folder of `git"
    ):
        OriginalCheckout(tmp_path / "nowhere")


def test_another_folder_is_not_a_checkout(tmp_path):
    with pytest.raises(BenchmarkError, match=r"is not a checkout of the original DETR, it has no main\.py"):
        OriginalCheckout(tmp_path)


def test_a_checkout_that_cannot_be_imported_is_named(checkout):
    (checkout / "engine.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(BenchmarkError, match=r"cannot be imported \(ModuleNotFoundError: No module named 'no_such"):
        OriginalCheckout(checkout)
    assert sys.modules["datasets"] is datasets


def test_modules_of_the_original_do_not_replace_others(checkout):
    original = OriginalCheckout(checkout)
    assert original.misc.__file__ == str(checkout / "util/misc.py")
    assert sys.modules["datasets"] is datasets
    assert not {"main", "models", "util"} & {*sys.modules}
    assert str(checkout) not in sys.path


def test_a_model_that_the_original_does_not_have_is_refused(checkout):
    message = r"the original does not support backbone 'resnet10t' .*, 3 classes \(only 91\)"
    with pytest.raises(BenchmarkError, match=message):
        OriginalCheckout(checkout).build(DetrConfig(backbone="resnet10t", num_labels=3))


def test_the_commit_is_that_of_the_checkout(checkout):
    assert OriginalCheckout(checkout).commit == ""
    (checkout / ".git").mkdir()
    (checkout / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (checkout / ".git/refs/heads").mkdir(parents=True)
    (checkout / ".git/refs/heads/main").write_text("29901c51d7fe\n")
    assert OriginalCheckout(checkout).commit == "29901c51d7fe"
