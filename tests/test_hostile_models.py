"""What a downloaded model may not do: open files, reach the network, run code, fill the memory."""

import json
import struct
import time

import pytest
import timm

from modeling_detr import DetrConfig, DetrForObjectDetection, DetrModel, DetrTorchvisionImageProcessor
from modeling_detr.pretrained_detr import base_of_adapter


@pytest.fixture
def saved(tmp_path, tiny_detector):
    """A saved model; called with keys, it changes them in its config.json."""
    tiny_detector().save_pretrained(tmp_path / "model")

    def change(**keys):
        path = tmp_path / "model/config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
        return tmp_path / "model"

    return change


@pytest.fixture
def timm_calls(monkeypatch):
    """The arguments of all calls of `timm.create_model`."""
    calls = []
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *args, **options: (calls.append(options), create(*args, **options))[1]
    )
    return calls


@pytest.mark.parametrize(
    "options",
    [
        {"checkpoint_path": "/tmp/weights.pth"},
        {"pretrained_cfg": {"file": "/tmp/weights.pth"}},
        {"pretrained_cfg_overlay": {"hf_hub_id": "somebody/model"}},
        {"cache_dir": "/tmp/cache"},
        {"pruned": True},
        {"an_option_of_tomorrow": "/tmp/weights.pth"},
        {"act_layer": "hf-hub:somebody/model"},
        {"block_args": {"path": "../weights.pth"}},
    ],
)
def test_backbone_options_cannot_name_a_file_or_a_place(saved, timm_calls, options):
    folder = saved(backbone_kwargs=options)
    with pytest.raises(ValueError, match=f"backbone_kwargs: '?{next(iter(options))}"):
        DetrForObjectDetection.from_pretrained(folder)
    assert not timm_calls


@pytest.mark.parametrize("backbone", ["hf-hub:somebody/model", "local-dir:/tmp", "somebody/model", "../model", ""])
def test_a_backbone_is_no_folder_and_no_repository(saved, timm_calls, backbone):
    with pytest.raises(ValueError, match=r"backbone: got .*expected the name of a timm model"):
        DetrForObjectDetection.from_pretrained(saved(backbone=backbone, backbone_kwargs=None))
    assert not timm_calls


def test_backbone_options_are_checked_where_they_are_used(tiny_config, timm_calls):
    """Also in a config that was changed after it was built."""
    config = tiny_config()
    config.backbone_kwargs = {"checkpoint_path": "/tmp/weights.pth"}
    with pytest.raises(ValueError, match="'checkpoint_path' is not allowed"):
        DetrModel(config)
    assert not timm_calls


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_attention_is_no_repository(saved, key):
    with pytest.raises(
        ValueError, match='attn_implementation="evil/evil"` is not supported; expected one of sdpa, eager'
    ):
        DetrForObjectDetection.from_pretrained(saved(**{key: "evil/evil"}))


def test_attention_is_no_repository_when_it_is_set_later(tiny_detector):
    with pytest.raises(ValueError, match='attn_implementation="evil/evil"` is not supported'):
        tiny_detector().set_attn_implementation("evil/evil", allow_all_kernels=True)


@pytest.mark.parametrize(
    "keys",
    [
        {"num_queries": 10**12},
        {"num_queries": 10**5, "d_model": 65536},
        {"d_model": 10**9},
        {"encoder_layers": 10**7},
        {"decoder_ffn_dim": 10**12},
        {"num_channels": 10**9},
        {"learned_position_grid": 10**9},
        {"num_labels": 10**9, "id2label": None, "label2id": None},
        {"num_labels": "many", "id2label": None, "label2id": None},
        {"backbone_kwargs": {"channels": [100_000] * 4}},
        {"backbone_kwargs": {"layers": [10**9] * 4}},
        {"dtype": "os"},
    ],
)
def test_absurd_sizes_are_refused_at_once(saved, keys):
    folder = saved(**keys)
    start = time.monotonic()
    with pytest.raises(ValueError, match="expected"):
        DetrForObjectDetection.from_pretrained(folder)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000, "[1]", "5"])
def test_a_config_that_is_no_config_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    for loader in (DetrForObjectDetection, DetrConfig):
        with pytest.raises(ValueError, match=r"config.json (is nested too deeply|holds no keys)"):
            loader.from_pretrained(tmp_path)


def _header(content):
    return struct.pack("<Q", len(content)) + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        struct.pack("<Q", 2**63) + b"{}",
        _header(b"no json"),
        _header(b'{"a":' * 100_000),
        _header(b'{"a":{"dtype":"F32","shape":[1000000000,1000000000],"data_offsets":[0,4]}}'),
        b"cos\nsystem\n(S'false'\ntR.",
    ],
)
def test_damaged_weights_are_an_error_that_names_the_model(saved, content):
    folder = saved()
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=f"{folder}: its weights cannot be read .*it is damaged"):
        DetrForObjectDetection.from_pretrained(folder)


def test_weights_are_files_of_the_folder(saved, tmp_path):
    """Neither the list of files nor the config may name another one, also if it has the same weights."""
    folder = saved()
    names = DetrForObjectDetection.from_pretrained(folder).state_dict()
    (folder / "model.safetensors").rename(tmp_path / "outside.safetensors")
    for outside in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), 5):
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, outside)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"its weights are in .*expected a file of its own folder"):
            DetrForObjectDetection.from_pretrained(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"its weights are in .*expected a file of its own folder"):
        DetrForObjectDetection.from_pretrained(saved(transformers_weights="../outside.safetensors"))


@pytest.mark.parametrize("content", ["[1]", "{}", "[" * 100_000, "5", '{"weight_map": [1]}', "\0"])
def test_a_malformed_list_of_weights_is_an_error(saved, content):
    folder = saved()
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=r"model.safetensors.index.json: .*damaged"):
        DetrForObjectDetection.from_pretrained(folder)


def test_other_malformed_parts_are_errors_of_the_model(saved):
    with pytest.raises(ValueError, match=r"config.json has quantization_config 5, expected"):
        DetrForObjectDetection.from_pretrained(saved(quantization_config=5))
    folder = saved(quantization_config=None)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(ValueError, match=f"{folder}: cannot be loaded .*damaged"):
        DetrForObjectDetection.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("preprocessor_config.json", b"[1]"),
        ("preprocessor_config.json", b"5"),
        ("preprocessor_config.json", b"[" * 100_000),
        ("preprocessor_config.json", b"\xff\xfe"),
        ("processor_config.json", b"[" * 100_000),
    ],
)
def test_a_malformed_image_processor_is_an_error(tmp_path, name, content):
    DetrTorchvisionImageProcessor().save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"preprocessor_config.json (cannot be read|holds no keys)|not a valid JSON"):
        DetrTorchvisionImageProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", ["[1]", "{}", "[" * 100_000, '{"base_model_name_or_path": 5}'])
def test_a_malformed_adapter_is_an_error(tmp_path, monkeypatch, content):
    monkeypatch.setattr("modeling_detr.pretrained_detr.is_peft_available", lambda: True)
    (tmp_path / "adapter_config.json").write_text(content)
    with pytest.raises(ValueError, match=r"adapter_config.json: .*expected|not valid JSON"):
        base_of_adapter(str(tmp_path), {})
