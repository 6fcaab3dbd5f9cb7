"""Checkpoints in the original layout: the same tensors as the models that they were made from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from edgediffusion.engines.errors import ExportError
from edgediffusion.export.families import FAMILIES
from edgediffusion.export.sources import Source, open_source, select
from edgediffusion.export.sources.original import unet
from edgediffusion.export.to_onnx import quiet
from edgediffusion.export.weights import StoredTensor
from edgediffusion.runtime.tokenizer import ClipTokenizer

from .originals import ORIGINALS, models, state, write
from .originals import unet as original_unet

FAMILY = {"sd1": "sd", "sd1_inpaint": "sd_inpaint", "sd1_pix2pix": "sd_pix2pix", "sd2": "sd"}
Made = tuple[Path, dict[str, nn.Module]]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """Each kind of file, with the models that are in it."""
    folder, result = tmp_path_factory.mktemp("originals"), {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, original in ORIGINALS.items():
            found = models(original)
            result[name] = (write(folder / f"{name}.safetensors", original, found), found)
    return result


@pytest.mark.parametrize("name", ORIGINALS)
def test_every_tensor_is_that_of_the_model(made: dict[str, Made], name: str) -> None:
    path, found = made[name]
    source = open_source(path)
    assert source.family == FAMILY.get(name, name)
    assert source.parts.keys() == found.keys()
    for folder, model in found.items():
        weights = {k: w for k, w in source.parts[folder].weights.items() if not k.endswith("position_ids")}
        wanted = state(model)
        assert weights.keys() == wanted.keys()
        for key, weight in weights.items():
            assert weight.shape == wanted[key].shape
            assert torch.equal(weight.read(), wanted[key]), key


@pytest.mark.parametrize("name", ORIGINALS)
def test_shapes_tell_the_config(made: dict[str, Made], name: str) -> None:
    path, found = made[name]
    for folder, part in open_source(path).parts.items():
        model: Any = found[folder]
        known = model.config if folder in ("unet", "vae") else model.config.to_dict()
        unsaid = {
            "_class_name",
            "architectures",
            "pad_token_id",
            "sample_size",
        }  # the models here have none, or another
        derived = {key: value for key, value in part.config.items() if key not in unsaid}
        assert json.dumps(derived) == json.dumps({key: known[key] for key in derived})


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_exporter_finds_every_weight(made: dict[str, Made], name: str) -> None:
    source = open_source(made[name][0])
    for network in FAMILIES[source.family].values():
        if part := source.component(network.folders):
            with torch.device("meta"), quiet():
                module = network.module(part.config)
            shapes = {key: tuple(weight.shape) for key, weight in module.state_dict().items()}
            assert select(part, shapes, network.renames, network.skip).keys() == shapes.keys()


@pytest.mark.parametrize("name", ["sd1", "sdxl"])
def test_diffusers_reads_the_same(made: dict[str, Made], name: str, tmp_path: Path) -> None:
    source = open_source(made[name][0])
    kinds: dict[str, Any] = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
    for folder, kind in kinds.items():
        part = source.parts[folder]
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(json.dumps(part.config))
        with quiet():
            model = kind.from_single_file(made[name][0], config=str(tmp_path), subfolder=folder, local_files_only=True)
        wanted = state(model)
        assert part.weights.keys() == wanted.keys()
        assert all(torch.equal(weight.read(), wanted[key]) for key, weight in part.weights.items())


SD15 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "layers_per_block": 2,
}
SD21 = SD15 | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
BASE = {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "layers_per_block": 2,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
REFINER = BASE | {
    "block_out_channels": [384, 768, 1536, 1536],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 1280,
    "attention_head_dim": [6, 12, 24, 24],
    "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}


@pytest.mark.parametrize(
    ("published", "head_dim", "keys"), [(SD15, None, 686), (SD21, 64, 686), (BASE, 64, 1680), (REFINER, 64, 1220)]
)
def test_published_unets(published: dict[str, Any], head_dim: int | None, keys: int) -> None:
    """The configs of the hub's repositories, from shapes alone; as many keys as the published files have."""
    kind: Any = UNet2DConditionModel
    with torch.device("meta"):
        found = original_unet(state(kind(**published)), published)
    stored = {key: StoredTensor(Path("x"), "F16", tuple(t.shape), 0, 0) for key, t in found.items()}
    derived = unet.config(unet.convert(stored), head_dim, 64)
    assert {key: derived[key] for key in published} == published
    assert len(stored) == keys


def test_settings_that_the_file_does_not_hold(made: dict[str, Made], tmp_path: Path) -> None:
    source = open_source(made["sdxl"][0])
    ids = {}
    for name in ("tokenizer", "tokenizer_2"):
        (tmp_path / name).mkdir()
        for file, content in source.folder(name).items():
            (tmp_path / name / file).write_bytes(content)
        ids[name] = ClipTokenizer(tmp_path / name)(["a photo of a cat"])[0].tolist()
    # the ids that OpenAI's tokenizer gives, as published with CLIP: begin, "a photo of a cat", end, padding
    assert ids["tokenizer"] == [49406, 320, 1125, 539, 320, 2368, 49407, *[49407] * 70]
    assert ids["tokenizer_2"] == [49406, 320, 1125, 539, 320, 2368, 49407, *[0] * 70]
    assert source.index["scheduler"] == ["diffusers", "EulerDiscreteScheduler"]
    assert source.license() == "unknown"


def scheduler(source: Source) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(source.settings["scheduler/scheduler_config.json"])
    return config


def edited(path: Path, changes: Mapping[str, torch.Tensor | None], metadata: dict[str, str] | None = None) -> Path:
    """A copy of the file in the working folder; a tensor that is None is left out."""
    tensors = {key: tensor for key, tensor in {**load_file(path), **changes}.items() if tensor is not None}
    save_file(tensors, "x.safetensors", metadata)
    return Path("x.safetensors")


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


SPREAD = {"model.diffusion_model.output_blocks.5.1.transformer_blocks.0.norm1.bias": torch.linspace(-1, 1, 64)}


@pytest.mark.parametrize(
    ("name", "changes", "metadata", "wanted"),
    [
        ("sd1", {}, {}, "epsilon"),
        ("sd1", {}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("sdxl", {"v_pred": torch.ones(())}, {}, "v_prediction"),
        ("sd2", {}, {}, "epsilon"),
        ("sd2", SPREAD, {}, "v_prediction"),
        ("sd2", SPREAD, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
    ],
)
def test_what_the_unet_predicts(
    made: dict[str, Made], name: str, changes: dict[str, torch.Tensor], metadata: dict[str, str], wanted: str
) -> None:
    source = open_source(edited(made[name][0], changes, metadata))
    assert scheduler(source)["prediction_type"] == wanted
    size = source.parts["unet"].config["sample_size"]
    assert size == {"sd1": 64, "sd2": 96 if wanted == "v_prediction" else 64, "sdxl": 128}[name]


def test_zero_terminal_snr(made: dict[str, Made]) -> None:
    source = open_source(edited(made["sdxl"][0], {"ztsnr": torch.ones(())}))
    assert scheduler(source)["rescale_betas_zero_snr"] is True


def test_guidance_embedding(made: dict[str, Made]) -> None:
    key = "model.diffusion_model.time_embed.cond_proj.weight"
    part = open_source(edited(made["sd1"][0], {key: torch.ones(32, 16)})).parts["unet"]
    assert part.config["time_cond_proj_dim"] == 16
    assert part.weights["time_embedding.cond_proj.weight"].shape == (32, 16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora.up": torch.ones(1)}, r"x.safetensors: 1 weights belong to no component, first lora.up; only plain"),
        ({"model.diffusion_model.input_blocks.0.0.weight": torch.ones(32, 5, 3, 3)}, r"reads 5 channels; .*: 4, 8, 9"),
        ({"model.diffusion_model.out.2.weight": None}, r"under 'model.diffusion_model.' are no whole component"),
    ],
)
def test_bad_files(made: dict[str, Made], changes: dict[str, torch.Tensor | None], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        open_source(edited(made["sd1"][0], changes))


def test_another_kind_of_file() -> None:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(1)}, "flux.safetensors")
    with pytest.raises(ExportError, match=r"flux.safetensors: not a whole checkpoint in the original layout \(first"):
        open_source(Path("flux.safetensors"))


def test_broken_file() -> None:
    Path("x.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(ExportError, match=r"x.safetensors: not a whole safetensors file"):
        open_source(Path("x.safetensors"))


def test_pickled_file() -> None:
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 3}, "x.ckpt")
    with pytest.raises(
        ExportError, match=r"x.ckpt: pickled weights.*convert them with: python -c .*x.safetensors"
    ) as caught:
        open_source(Path("x.ckpt"))
    exec(str(caught.value).split('python -c "')[1].rstrip('"'))  # what it says works
    assert load_file("x.safetensors")["a"].tolist() == [1, 1]
