"""Files that are not checkpoints or would run code, and downloads."""

import argparse
import datetime
import functools
import hashlib
import http.server
import os
import pathlib
import pickle
import struct
import sys
import threading
import types
import zipfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from modeling_detr.conversion import checkpoint_files
from modeling_detr.conversion.checkpoint_files import (
    find_checkpoint,
    read_checkpoint,
    released_name_of,
)


class RunsCode:
    """An object that runs a command when it is unpickled."""

    def __init__(self, witness):
        self.witness = witness

    def __reduce__(self):
        return os.system, (f"touch {self.witness}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["model", "args", "further"])
def test_a_checkpoint_with_code_is_refused_and_nothing_runs(tmp_path, zipped, where):
    witness = tmp_path / "it-ran"
    content = {"model": {"weight": torch.zeros(2)}, "args": argparse.Namespace(lr=1.0), "further": None}
    content[where] = RunsCode(witness) if where != "args" else argparse.Namespace(lr=RunsCode(witness))
    path = tmp_path / "hostile.pth"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(
        ValueError, match=r"hostile\.pth: rejected because it contains '(posix|nt)\.system', which would run code"
    ):
        read_checkpoint(path)
    assert not witness.exists()


def test_a_plain_pickle_is_refused_and_nothing_runs(tmp_path):
    witness, path = tmp_path / "it-ran", tmp_path / "plain.pth"
    path.write_bytes(pickle.dumps(RunsCode(witness)))
    with pytest.raises(ValueError, match=r"plain\.pth: rejected because it contains '(posix|nt)\.system'"):
        read_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("protocol", [0, 3, 5])
def test_code_is_refused_in_every_pickle_protocol(tmp_path, protocol):
    witness, path = tmp_path / "it-ran", tmp_path / "hostile.pth"
    torch.save({"model": {"weight": torch.zeros(2)}, "args": RunsCode(witness)}, path, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"hostile\.pth: rejected because it contains '(posix|nt)\.system'"):
        read_checkpoint(path)
    assert not witness.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [0, 1, 4, 5])
def test_a_harmless_file_in_another_pickle_protocol_is_not_called_dangerous(tmp_path, protocol, zipped):
    content = {"model": {"weight": torch.zeros(2)}, "args": argparse.Namespace(lr=1.0), "best": np.float32(0.4)}
    path = tmp_path / "mine.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"mine\.pth: saved with a pickle protocol .* save it with the default"):
        read_checkpoint(path)


def test_a_compressed_file_is_refused_before_it_is_unpacked(tmp_path):
    """Mapped into memory, its compressed bytes would be taken for weights."""
    path, packed = tmp_path / "weights.pth", tmp_path / "packed.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in archive.namelist():
            target.writestr(name, archive.read(name))
    with pytest.raises(ValueError, match=r"packed\.pth: a compressed zip file"):
        read_checkpoint(packed)


def test_weights_that_are_numpy_arrays_are_an_error_that_says_so(tmp_path):
    torch.save({"query_embed.weight": np.zeros((2, 1))}, tmp_path / "arrays.pth")
    with pytest.raises(ValueError, match=r"'query_embed\.weight' is an object of NumPy or another library"):
        read_checkpoint(tmp_path / "arrays.pth")


@pytest.mark.parametrize("length", [ord("<"), ord("{"), ord(" ") + 256 * ord("<")])
def test_the_length_of_a_safetensors_header_is_not_taken_for_text(tmp_path, length):
    header = b'{"q":{"dtype":"U8","shape":[8],"data_offsets":[0,8]}}'.ljust(length)
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", length) + header + b"\0" * 8)
    with pytest.raises(ValueError, match="its parameters are 'q'"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_safetensors_file_is_read_whatever_its_name(tmp_path, name):
    save_file({"query_embed.weight": torch.ones(2, 1)}, tmp_path / name)
    assert read_checkpoint(tmp_path / name).weights["query_embed.weight"].tolist() == [[1.0], [1.0]]
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=f"{name}: the weights of a model folder; pass the folder"):
        read_checkpoint(tmp_path / name)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_a_truncated_safetensors_file_is_an_error(tmp_path, share):
    path = tmp_path / "weights.safetensors"
    save_file({"query_embed.weight": torch.ones(20, 1)}, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"weights\.safetensors: a damaged safetensors file"):
        read_checkpoint(path)


def test_what_training_scripts_save_beside_the_weights_is_left_out_without_being_called(tmp_path):
    """NumPy's unpickling is not made for hostile files, so not even its scalars are built."""
    args = argparse.Namespace(nheads=4, eos_coef=np.float64(0.1), data=pathlib.PureWindowsPath("C:/x"))
    content = {
        "model": {"query_embed.weight": torch.ones(2, 1)},
        "args": args,
        "best": np.float32(0.4),
        "stats": np.zeros(12),
        "epoch": np.int64(3),
        "by_class": defaultdict(list, {"a": [1]}),
        "when": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
        "kinds": [frozenset([1]), datetime.date(2026, 1, 1)],
    }
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.weights) == ["query_embed.weight"]
    assert checkpoint.options == {"nheads": 4}


def test_the_hyperparameters_of_lightning_are_options(tmp_path):
    module = types.ModuleType("lightning_fabric.utilities.data")
    attribute_dict = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = attribute_dict
    names = ("lightning_fabric", "lightning_fabric.utilities", module.__name__)
    try:
        sys.modules.update(dict.fromkeys(names, module))
        content = {
            "state_dict": {"query_embed.weight": torch.ones(2, 1)},
            "hyper_parameters": attribute_dict(nheads=4),
        }
        torch.save(content, tmp_path / "last.ckpt")
    finally:
        for name in names:
            del sys.modules[name]
    assert read_checkpoint(tmp_path / "last.ckpt").options == {"nheads": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b"<!DOCTYPE html><html><body>Not found</body></html>", "a web page, not a checkpoint"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "a Git LFS pointer, not the file itself"),
        (b'{"error": "not found"}', "a text file, not a checkpoint"),
        (b"image,label\n1.jpg,cat\n", "not a PyTorch checkpoint"),
        (b"0\n", "not a PyTorch checkpoint"),
        (b".hidden\n", "not a PyTorch checkpoint"),
        (b"a few words\n", "not a PyTorch checkpoint"),
        (b"\x80\x02 these are no weights", "not a PyTorch checkpoint"),
    ],
)
def test_other_kinds_of_files_are_named_in_the_error(tmp_path, content, message):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_checkpoint(path)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_a_truncated_file_is_an_error(tmp_path, zipped, share):
    path = tmp_path / "weights.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=r"weights\.pth: (incomplete|not a) checkpoint"):
        read_checkpoint(path)


def test_a_checkpoint_without_weights_is_an_error(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"epoch": 3, "loss": [1.0]}, path)
    with pytest.raises(ValueError, match=r"'epoch' is of type int, expected a tensor; its keys are epoch, loss"):
        read_checkpoint(path)
    torch.save([torch.zeros(1)], path)
    with pytest.raises(ValueError, match="its content is of type list, expected a state dict"):
        read_checkpoint(path)


def test_options_paths_and_module_prefixes_are_read(tmp_path):
    path = tmp_path / "checkpoint.pth"
    args = argparse.Namespace(nheads=4, output_dir=Path("somewhere"))
    weights = {"module.query_embed.weight": torch.ones(2, 1), "module.a.num_batches_tracked": torch.tensor(3)}
    torch.save({"model": weights, "optimizer": {}, "lr_scheduler": {}, "epoch": 7, "args": args}, path)
    checkpoint = read_checkpoint(path)
    assert list(checkpoint.weights) == ["query_embed.weight"]
    assert checkpoint.options["nheads"] == 4
    assert checkpoint.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "released"),
    [
        ("detr-r50", "detr-r50"),
        ("detr-r101-dc5-a2e86def.pth", "detr-r101-dc5"),
        ("some/where/detr-r50-dc5-panoptic-da08f1b1.pth", "detr-r50-dc5-panoptic"),
        ("detr-r50-00000000.pth", None),
        ("detr-r18.pth", None),
        ("mine.pth", None),
    ],
)
def test_released_models_are_recognised_by_name(name, released):
    assert released_name_of(name) == released


@pytest.fixture
def releases(tmp_path, monkeypatch):
    """A server for released files, and an empty cache for downloads."""
    (tmp_path / "served").mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(checkpoint_files, "RELEASES_URL", f"http://127.0.0.1:{server.server_port}")
        yield tmp_path / "served"
        server.shutdown()


def serve(folder, monkeypatch, content=b"weights", digits=None):
    digits = digits or hashlib.sha256(content).hexdigest()[:8]
    monkeypatch.setitem(checkpoint_files.RELEASED, "detr-r50", digits)
    (folder / f"detr-r50-{digits}.pth").write_bytes(content)


def test_a_released_model_is_downloaded_once(releases, monkeypatch):
    serve(releases, monkeypatch)
    path = find_checkpoint("detr-r50")
    assert path.read_bytes() == b"weights"
    for file in releases.iterdir():
        file.unlink()
    assert find_checkpoint("detr-r50") == path


def test_a_download_with_another_hash_is_refused(releases, monkeypatch):
    serve(releases, monkeypatch, digits="0" * 8)
    with pytest.raises(ValueError, match="the download does not match the released file"):
        find_checkpoint("detr-r50")
    assert not [path for path in releases.parent.glob("hub/**/*") if path.is_file()]


def test_a_failed_download_is_an_error_that_names_the_url(releases, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "RELEASES_URL", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"detr-r50: download failed \(.*\); download http://127.0.0.1:9/detr-r50-"):
        find_checkpoint("detr-r50")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="HF_HUB_OFFLINE forbids"):
        find_checkpoint("detr-r50")


def test_an_unknown_name_is_an_error_that_lists_the_released_ones(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no-such\.pth: no such file; .*detr-r101-dc5"):
        find_checkpoint("no-such.pth")
    with pytest.raises(ValueError, match="is a folder, expected an original DETR checkpoint"):
        find_checkpoint(tmp_path)
