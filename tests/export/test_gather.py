"""Components from elsewhere."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, ControlNetModel
from safetensors.torch import save_file

from edgediffusion.engines.errors import ExportError
from edgediffusion.export.options import Options
from edgediffusion.export.sources import gather, open_source

from .originals import VAE, state, vae
from .originals import controlnet as original_controlnet


@pytest.fixture(scope="session")
def autoencoder() -> Any:
    kind: Any = AutoencoderKL
    return kind(**VAE)


def test_nothing_from_elsewhere(checkpoint: Path) -> None:
    assert gather(checkpoint, Options()) == open_source(checkpoint)


@pytest.mark.parametrize("inside", ["", "vae"])
def test_a_folder(checkpoint: Path, tmp_path: Path, autoencoder: Any, inside: str) -> None:
    autoencoder.save_pretrained(tmp_path / "vae")
    if inside:
        shutil.copy(checkpoint / "model_index.json", tmp_path)
    place = tmp_path if inside else tmp_path / "vae"
    source = gather(checkpoint, Options(vae=str(place)))
    part = source.parts["vae"]
    assert part.weights.keys() == autoencoder.state_dict().keys()
    assert part.files[0].parent == tmp_path / "vae"
    assert source.parts["unet"] == open_source(checkpoint).parts["unet"]


def test_a_bundle_gives_both_halves(checkpoint: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(checkpoint, bundle)
    for half in ("vae_encoder", "vae_decoder"):
        shutil.copytree(bundle / "vae", bundle / half)
    shutil.rmtree(bundle / "vae")
    assert {"vae_encoder", "vae_decoder"} <= gather(checkpoint, Options(vae=str(bundle))).parts.keys()
    assert "vae" not in gather(checkpoint, Options(vae=str(bundle))).parts
    assert not {"vae_encoder", "vae_decoder"} & gather(bundle, Options(vae=str(checkpoint))).parts.keys()


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_a_vae_in_one_file(checkpoint: Path, tmp_path: Path, autoencoder: Any, prefix: str) -> None:
    tensors = {prefix + key: t.contiguous() for key, t in vae(state(autoencoder)).items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    part = gather(checkpoint, Options(vae=str(tmp_path / "vae.safetensors"))).parts["vae"]
    wanted = state(autoencoder)
    assert part.weights.keys() == wanted.keys()
    assert all(torch.equal(weight.read(), wanted[key]) for key, weight in part.weights.items())
    own = json.loads((checkpoint / "vae" / "config.json").read_text())
    assert part.config["scaling_factor"] == own["scaling_factor"]


def test_a_tiny_vae(checkpoint: Path, tmp_path: Path) -> None:
    kind: Any = AutoencoderTiny
    kind(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4).save_pretrained(tmp_path / "taesd")
    source = gather(checkpoint, Options(vae=str(tmp_path / "taesd")))
    assert source.index["vae"] == ["diffusers", "AutoencoderTiny"]
    assert any(key.startswith("decoder.layers.") for key in source.parts["vae"].weights)


@pytest.mark.parametrize("layout", ["control_model.", "", "diffusers"])
def test_a_controlnet_in_one_file(checkpoint: Path, controlnet: Path, tmp_path: Path, layout: str) -> None:
    kind: Any = ControlNetModel
    model = kind.from_pretrained(controlnet)
    wanted, file = state(model), tmp_path / "canny.safetensors"
    keys = wanted if layout == "diffusers" else original_controlnet(wanted, model.config)
    save_file({layout.removeprefix("diffusers") + key: t.contiguous() for key, t in keys.items()}, file)
    part = gather(checkpoint, Options(controlnets=(str(file),))).parts["controlnet"]
    assert part.weights.keys() == wanted.keys()
    assert all(torch.equal(weight.read(), wanted[key]) for key, weight in part.weights.items())
    assert json.dumps({key: model.config[key] for key in part.config}) == json.dumps(part.config)
    if layout == "control_model.":
        groups = {"norm_num_groups": model.config["norm_num_groups"]}  # 32 in all of the original code
        (tmp_path / "config.json").write_text(json.dumps(part.config | groups))
        read = kind.from_single_file(file, config=str(tmp_path), local_files_only=True)
        assert all(torch.equal(tensor, wanted[key]) for key, tensor in state(read).items())


def test_a_unet_of_another_checkpoint(checkpoints: Callable[[str], Path], checkpoint: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    source = gather(checkpoint, Options(unet=str(other)))
    assert source.parts["unet"].files[0].parent == other / "unet"
    assert source.name == checkpoint.name


def test_no_such_component(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ExportError, match=r"no vae there; wanted its folder, or a checkpoint that has one"):
        gather(checkpoint, Options(vae=str(tmp_path)))
    with pytest.raises(ExportError, match=r"nowhere: no such checkpoint; wanted a folder in diffusers' layout"):
        gather(checkpoint, Options(unet=str(tmp_path / "nowhere")))
