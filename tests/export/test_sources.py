"""Checkpoints that cannot be exported: each gives one clear line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from edgediffusion.engines.errors import ExportError, UnknownName
from edgediffusion.export.sources import EditedPart, FolderPart, open_source, read_json, select
from edgediffusion.export.weights import Weight
from edgediffusion.export.write_bundle import export_bundle

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    return folder


def edit(copy: Path, weights: str = f"text_encoder/{WEIGHTS}", /, **changes: np.ndarray | None) -> None:
    """Replace weights, or remove those that are None."""
    path = copy / weights
    tensors = load_file(path) | changes
    save_file({key: value for key, value in tensors.items() if value is not None}, path, {"format": "pt"})


def refused(copy: Path, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        export_bundle(copy, copy.parent / "out")
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"nowhere: no such checkpoint; wanted a folder in diffusers' layout"):
        open_source(tmp_path / "nowhere")


def test_not_a_diffusers_folder(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"not a diffusers folder \(model_index.json is missing\)"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "cannot be read"), ("[]", r"cannot be read \(got list, wanted a JSON object\)")]
)
def test_broken_index(copy: Path, text: str, message: str) -> None:
    (copy / "model_index.json").write_text(text)
    refused(copy, f"model_index.json: {message}")


def test_another_family(copy: Path) -> None:
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusion3Pipeline"}))
    message = r"unknown pipeline class in model_index.json of copy 'StableDiffusion3Pipeline'; known: .*StableDiff"
    with pytest.raises(UnknownName, match=message):
        export_bundle(copy, copy.parent / "out")


def test_pickled_weights(copy: Path) -> None:
    (copy / "text_encoder" / WEIGHTS).rename(copy / "text_encoder" / "pytorch_model.bin")
    message = r"only pickled weights \(pytorch_model.bin\).*not read; if you trust them, .*use_safetensors=False"
    refused(copy, message)


def test_no_weights(copy: Path) -> None:
    (copy / "text_encoder" / WEIGHTS).unlink()
    refused(copy, r"text_encoder: no weights here \(model.safetensors or diffusion_pytorch_model.safetensors\)")


def test_truncated_weights(copy: Path) -> None:
    path = copy / "text_encoder" / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    refused(copy, r"model.safetensors: not a whole safetensors file \(.*\); download or convert it again")


def test_broken_header(copy: Path) -> None:
    (copy / "text_encoder" / WEIGHTS).write_bytes(b"\x10\0\0\0\0\0\0\0not json at all!")
    refused(copy, r"model.safetensors: not a whole safetensors file")


def test_missing_weight(copy: Path) -> None:
    edit(copy, **{"final_layer_norm.bias": None})
    refused(copy, r"text_encoder: 1 weights missing, first text_model.final_layer_norm.bias; config.json and weights")


def test_a_weight_of_the_last_component_is_missed_before_the_first_is_exported(copy: Path) -> None:
    edit(copy, "unet/diffusion_pytorch_model.safetensors", **{"conv_out.bias": None})
    lines: list[str] = []
    with pytest.raises(ExportError, match=r"unet: 1 weights missing, first conv_out\.bias"):
        export_bundle(copy, copy.parent / "out", report=lines.append)
    assert not lines


def test_left_over_weight(copy: Path) -> None:
    edit(copy, **{"lora.down": np.zeros(3, np.float16)})
    refused(copy, r"text_encoder: 1 weights left over, first text_model.lora.down; config.json and weights")


def test_wrong_shape(copy: Path) -> None:
    edit(copy, **{"final_layer_norm.bias": np.zeros(3, np.float16)})
    refused(copy, r"final_layer_norm.bias has shape \(3,\), config.json makes it \(32,\)")


def test_wrong_dtype(copy: Path) -> None:
    edit(copy, **{"final_layer_norm.bias": np.zeros(32, np.int8)})
    refused(copy, r"final_layer_norm.bias has dtype I8; known: BF16, F16, F32")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_nan_in_weights(copy: Path, value: float) -> None:
    edit(copy, **{"final_layer_norm.bias": np.full(32, value, np.float16)})
    refused(copy, r"text_model.final_layer_norm.bias holds NaN or infinity")


def test_unreadable_config(copy: Path) -> None:
    (copy / "text_encoder" / "config.json").write_text("{")
    refused(copy, r"text_encoder/config.json: cannot be read")


@pytest.mark.parametrize(
    "change", [{"hidden_size": None}, {"num_attention_heads": 5}, {"max_position_embeddings": None}]
)
def test_config_of_no_network(copy: Path, change: dict[str, int | None]) -> None:
    path = copy / "text_encoder" / "config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    refused(copy, r"text_encoder/config.json: describes no network of this kind")


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\ntags:\n- x\nlicense: creativeml-openrail-m\nlanguage: en\n---\n", "creativeml-openrail-m"),
        ("---\nlicense: 'mit'\n---\n", "mit"),
        ("# A model\nlicense: none of this\n", "unknown"),
        ("---\ntags: [x]\n---\nlicense: not here\n---\n", "unknown"),
    ],
)
def test_license_of_the_model_card(copy: Path, card: str, license: str) -> None:
    (copy / "README.md").write_text(card)
    assert open_source(copy).license() == license


def test_license_of_a_bundle(bundle: Path) -> None:
    assert open_source(bundle).license() == "apache-2.0"


def test_variant_and_shards(copy: Path) -> None:
    folder = copy / "text_encoder"
    whole = FolderPart(folder).weights
    (folder / WEIGHTS).rename(folder / "model.fp16.safetensors")
    assert FolderPart(folder).weights.keys() == whole.keys()
    (folder / "model.fp16.safetensors").rename(folder / WEIGHTS)
    shard(copy)
    assert FolderPart(folder).weights.keys() == whole.keys()


def shard(copy: Path) -> Path:
    """The text encoder in two shards."""
    folder = copy / "text_encoder"
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for i, half in enumerate((list(tensors)[::2], list(tensors)[1::2]), 1):
        save_file({key: tensors[key] for key in half}, folder / f"model-{i:05}-of-00002.safetensors")
    return folder


def test_a_shard_is_missing(copy: Path) -> None:
    folder = shard(copy)
    (folder / "model-00001-of-00002.safetensors").unlink()
    refused(copy, r"text_encoder: shard model-00001-of-00002.safetensors is missing; download the checkpoint again")


def test_shards_of_the_index(copy: Path) -> None:
    folder = shard(copy)
    whole = FolderPart(folder).weights.keys()
    first, second = folder / "model.a.safetensors", folder / "model.b.safetensors"
    (folder / "model-00001-of-00002.safetensors").rename(first)
    (folder / "model-00002-of-00002.safetensors").rename(second)
    index = {"weight_map": {"x": first.name, "y": second.name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert FolderPart(folder).weights.keys() == whole


@pytest.mark.parametrize("place", ["../elsewhere.safetensors", "/etc/passwd"])
def test_a_shard_outside_of_the_folder(copy: Path, place: str) -> None:
    (shard(copy) / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": place}}))
    refused(copy, rf"index.json: '{place}' is outside of the folder; only files beside it are read")


def test_older_names_are_read(checkpoint: Path) -> None:
    from edgediffusion.export.families import FAMILIES

    network = FAMILIES["sd"]["vae_encoder"]
    folder = checkpoint / "vae"
    part = FolderPart(folder)
    tensors = part.weights
    shapes = {k: t.shape for k, t in tensors.items() if k.startswith(("encoder.", "quant_conv."))}
    old: dict[str, Weight] = {}
    for key, tensor in tensors.items():
        for new, name in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            key = key.replace(f".{new}.", f".{name}.")
        old[key] = tensor
    assert old.keys() != tensors.keys()
    older = EditedPart(part.where, part.config, old, part.files)
    assert select(older, shapes, network.renames, network.skip) == {k: tensors[k] for k in shapes}


def test_position_ids_of_older_text_encoders_are_no_weights(copy: Path) -> None:
    from edgediffusion.export.families import FAMILIES

    network = FAMILIES["sd"]["text_encoder"]
    folder = copy / "text_encoder"
    shapes = {f"text_model.{key}": tensor.shape for key, tensor in FolderPart(folder).weights.items()}
    edit(copy, **{"embeddings.position_ids": np.arange(77)[None]})
    assert select(FolderPart(folder), shapes, network.renames, network.skip).keys() == shapes.keys()


def test_read_json_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"none.json: cannot be read"):
        read_json(tmp_path / "none.json")
