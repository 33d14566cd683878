import json
import shutil

import numpy as np
import pytest
from store_server import s3_bucket, serving

from modeling_detr.commands import run_command
from modeling_detr.data import open_dataset, read_image
from modeling_detr.data.check import check_dataset
from modeling_detr.data.dataset import DetectionDataset
from modeling_detr.data.formats import FORMATS
from modeling_detr.data.loaders import BatchLoader
from modeling_detr.data.remote import store
from modeling_detr.data.sampler import EvalBatchSampler
from modeling_detr.errors_detr import DatasetError, DatasetNotFoundError, DatasetReadError, StoreError
from modeling_detr.training.recipe import Recipe


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DETR_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("_DETR_STORE_CREDENTIALS", raising=False)
    monkeypatch.setattr(store, "FIRST_PAUSE", 0.01)
    return tmp_path / "cache"


def assert_same(index, local, address):
    assert [(record.id, record.height, record.width) for record in index.images] == [
        (record.id, record.height, record.width) for record in local.images
    ]
    assert all(record.path.startswith(f"{address}/") for record in index.images)
    assert index.splits.keys() == local.splits.keys()
    np.testing.assert_array_equal(index.annotations.boxes_xyxy, local.annotations.boxes_xyxy)
    for record, other in zip(index.images, local.images, strict=True):
        assert (read_image(record) == read_image(other)).all()


def test_a_bucket_is_read_as_the_same_folder_also_by_loader_processes(coco_folder):
    with s3_bucket(coco_folder, "data-of-loaders") as address:
        index = open_dataset(address)
        assert_same(index, open_dataset(coco_folder), address)
        dataset = DetectionDataset(index)
        shutil.rmtree(index.images[0].reader.cache)  # the processes have to ask the store
        loader = BatchLoader(dataset, EvalBatchSampler(dataset, 2), num_workers=2)
        assert sum(len(batch["labels"]) for batch in loader) == len(index)
        loader.close()


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
def test_a_folder_of_a_web_server_is_read_as_on_the_disk(name, request):
    folder = request.getfixturevalue(f"{name}_folder")
    with serving(folder.parent) as server:
        assert_same(open_dataset(f"{server.url}/{name}"), open_dataset(folder), f"{server.url}/{name}")


def test_names_with_odd_characters_are_found(coco_folder):
    odd = "ä b%20#&?.jpg"
    (coco_folder / "train/a.jpg").rename(coco_folder / "train" / odd)
    file = coco_folder / "annotations/instances_train.json"
    file.write_text(file.read_text().replace("a.jpg", odd))
    with serving(coco_folder.parent) as server:
        index = open_dataset(f"{server.url}/coco")
        assert index.images[0].path == f"{server.url}/coco/train/{odd}"
        assert read_image(index.images[0]).shape == (3, 60, 80)


def test_images_may_be_elsewhere_than_the_annotations(coco_folder, tmp_path):
    shutil.move(coco_folder / "train", tmp_path / "served" / "train")
    with serving(tmp_path / "served") as server:
        index = open_dataset(coco_folder / "annotations/instances_train.json", images=f"{server.url}/train")
        assert index.images[0].path == f"{server.url}/train/a.jpg"
        assert read_image(index.images[0]).shape == (3, 60, 80)


def test_annotations_are_downloaded_once_until_they_change(coco_folder, cache):
    file = coco_folder / "annotations/instances_train.json"
    with serving(coco_folder.parent) as server:
        address, path = f"{server.url}/coco", "/coco/annotations/instances_train.json"
        open_dataset(f"{server.url}{path}")
        open_dataset(address)
        assert server.requests[path] == 1
        content = json.loads(file.read_text())
        file.write_text(json.dumps({**content, "annotations": content["annotations"][:1]}))
        (coco_folder / "annotations/instances_val.json").unlink()
        shutil.rmtree(coco_folder / "val")
        index = open_dataset(address)
        assert not [*cache.glob("remote/*/tree/coco/val")]
        assert server.requests[path] == 2
        assert len(index.annotations) == 1
        assert index.splits.keys() == {"train"}


def test_an_annotation_file_that_is_damaged_in_the_cache_is_downloaded_again(
    coco_folder, cache, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETR_CACHE", "cache")  # a relative path is the same folder for a process elsewhere
    with serving(coco_folder.parent) as server:
        index = open_dataset(f"{server.url}/coco")
        assert index.images[0].reader.cache.startswith(str(cache))
        (file,) = cache.rglob("tree/coco/annotations/instances_train.json")
        file.write_text("")
        assert len(open_dataset(f"{server.url}/coco")) == len(index)


def test_names_that_no_folder_here_can_have_are_errors_or_left_out(coco_folder, monkeypatch):
    list_folder, more = store.list_folder, [store.Entry("train", False, 0, []), store.Entry("a\\..\\b", False, 0, [])]
    monkeypatch.setattr(store, "list_folder", lambda address: [*list_folder(address), *more])
    with serving(coco_folder.parent) as server:
        assert_same(open_dataset(f"{server.url}/coco"), open_dataset(coco_folder), f"{server.url}/coco")
        more.append(store.Entry(f"{'x' * 300}.jpg", False, 0, []))
        with pytest.raises(DatasetError, match=r"x.jpg: the name has more than 240 bytes"):
            open_dataset(f"{server.url}/coco")


@pytest.mark.parametrize("target", ["file:///etc/hostname", "/coco/train/a.jpg"])
def test_a_redirect_to_a_file_or_without_an_end_is_no_dead_store(target, coco_folder):
    with serving(coco_folder.parent) as server:
        index = open_dataset(f"{server.url}/coco")
        shutil.rmtree(index.images[0].reader.cache)
        server.redirects["/coco/train/a.jpg"] = target
        with pytest.raises(DatasetReadError, match=r"a.jpg: cannot be read \((NonHttpUrl|TooManyRedirects)"):
            read_image(index.images[0])
        assert read_image(index.images[1]).shape == (3, 50, 40)


def test_findings_name_the_remote_files(coco_folder, capsys):
    (coco_folder / "train/a.jpg").write_bytes(b"broken")
    (coco_folder / "val/c.jpg").unlink()
    with serving(coco_folder.parent) as server:
        report = check_dataset(f"{server.url}/coco")
        assert {finding.where for finding in report.findings if finding.severity == "error"} == {
            f"{server.url}/coco/train/a.jpg",
            f"{server.url}/coco/annotations/instances_val.json",
        }
        assert not any(str(coco_folder) in finding.message for finding in report.findings)
        with pytest.raises(DatasetNotFoundError, match=f"^{server.url}/coco/annotations/instances_val.json: 1 of 2"):
            open_dataset(f"{server.url}/coco")


def test_a_store_that_is_gone_or_silent_is_an_error_soon(coco_folder, monkeypatch, capsys):
    with serving(coco_folder.parent) as server:
        address = f"{server.url}/coco"
        index = open_dataset(address)
        shutil.rmtree(index.images[0].reader.cache)
        monkeypatch.setattr(store, "SECONDS_OF_ATTEMPT", 0.1)
        monkeypatch.setattr(store, "SECONDS_IN_ALL", 0.3)
        server.delay = 1.0
        with pytest.raises(StoreError, match=r"val/d.jpg: the store does not answer \(\d attempts in \d seconds"):
            read_image(index.images[3])
        before = server.requests["/coco/val/c.jpg"]
        with pytest.raises(StoreError):  # without another request
            read_image(index.images[2])
        assert server.requests["/coco/val/c.jpg"] == before
    assert run_command("data", ["check", address, "--no_html"]) == 2
    assert "the store does not answer" in capsys.readouterr().err


def test_a_password_opens_the_server_and_is_kept_nowhere(coco_folder, capsys, cache):
    with serving(coco_folder.parent) as server:
        server.password = "Basic dXNlcjpzZWNyZXRA"  # user:secret@
        address = f"{server.url}/coco"
        with pytest.raises(DatasetReadError, match=r"access is denied .*401"):
            open_dataset(address)
        private = address.replace("://", "://user:secret@@")
        assert run_command("data", ["check", private]) == 0
        assert Recipe(data=private).data == address
        assert open_dataset(private).images[0].path.startswith(address)
    written = [path.read_bytes() for path in cache.parent.rglob("*") if path.is_file()]
    assert "secret" not in capsys.readouterr().out
    assert not any(b"secret" in content for content in written)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("{}/nothing", "no such file or folder in the store"),
        ("{}/coco?token=secret", r"coco: an address with '\?' or '#'"),
        ("{}/coco/../../x", "not an address of a folder"),
        ("nosuch://bucket/coco", "nosuch://: cannot be opened"),
    ],
)
def test_addresses_without_a_dataset_are_errors(address, message, coco_folder):
    with serving(coco_folder.parent) as server, pytest.raises((DatasetError, OSError), match=message):
        open_dataset(address.format(server.url))


def test_every_reading_option_that_is_a_folder_may_be_remote():
    kinds = {option.name for entry in FORMATS.values() for option in entry.options if option.kind.__name__ == "Path"}
    assert kinds == {"images"}
