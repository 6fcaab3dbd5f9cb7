"""LoRAs fused at export, against what diffusers and peft make of the same file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from edgediffusion.engines.errors import ExportError
from edgediffusion.export.component import export_component
from edgediffusion.export.families import FAMILIES as EXPORT_FAMILIES
from edgediffusion.export.options import Options
from edgediffusion.export.reference import load_pipeline
from edgediffusion.export.sources import Source, open_source
from edgediffusion.export.sources.lora import METADATA, fuse_loras
from edgediffusion.export.to_onnx import quiet
from edgediffusion.export.weights import TORCH_DTYPES, cast, factors_of, write_tensors
from edgediffusion.runtime.families import FAMILIES
from edgediffusion.runtime.low_rank import FACTORS, FactorFile, factor_names
from edgediffusion.runtime.manifest import FileRecord
from edgediffusion.runtime.packs.patches import make_patch
from edgediffusion.runtime.tensors import encode

from .originals import state

Tensors = dict[str, torch.Tensor]
RANK, NAME = 3, "lora.safetensors"
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
UNET = (f"{ATTENTION}.to_q", f"{ATTENTION}.to_out.0", "down_blocks.0.attentions.0.proj_in")
CONVOLUTION = "down_blocks.0.resnets.0.conv1"
TEXT = ("text_model.encoder.layers.0.self_attn.q_proj", "text_model.encoder.layers.1.mlp.fc1")


def pairs(source: Source, folder: str, modules: tuple[str, ...]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """module -> random (down, up) that fit its weight."""
    weights = source.parts[folder].weights
    result = {}
    for module in modules:
        short = module.removeprefix("text_model.")
        shape = next(weights[f"{name}.weight"].shape for name in (module, short) if f"{name}.weight" in weights)
        points = (1,) * len(shape[2:])
        result[module] = (torch.randn(RANK, *shape[1:]), torch.randn(shape[0], RANK, *points))
    return result


def peft(source: Source, text: tuple[str, ...] = TEXT) -> Tensors:
    result = {}
    for folder, modules in (("unet", (*UNET, CONVOLUTION)), ("text_encoder", text)):
        for module, (down, up) in pairs(source, folder, modules).items():
            result[f"{folder}.{module}.lora_A.weight"], result[f"{folder}.{module}.lora_B.weight"] = down, up
    return result


def older(source: Source) -> Tensors:
    found = {key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): t for key, t in peft(source).items()}
    return {
        key.replace(".lora.", ".lora_linear_layer.") if key.startswith("text") else key: t for key, t in found.items()
    }


def kohya(source: Source) -> Tensors:
    """Without text attention, which diffusers 0.42 does not find under these names with transformers 5."""
    result: Tensors = {}
    for key, tensor in peft(source, TEXT[1:]).items():
        module, side = key.rsplit(".", 2)[0], {"lora_A": "lora_down", "lora_B": "lora_up"}[key.split(".")[-2]]
        module = module.replace("text_encoder.", "lora_te_").replace("unet.", "lora_unet_").replace(".", "_")
        result |= {f"{module}.{side}.weight": tensor, f"{module}.alpha": torch.tensor(2.0)}
    return result


@pytest.mark.parametrize("layout", [peft, older, kohya])
def test_the_same_as_diffusers(checkpoint: Path, tmp_path: Path, layout: Callable[[Source], Tensors]) -> None:
    pytest.importorskip("peft")
    source = open_source(checkpoint)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(layout(source), tmp_path / NAME, {"format": "pt"})
    pipeline = load_pipeline(checkpoint)
    with quiet():
        pipeline.load_lora_weights(tmp_path, weight_name=NAME)
        pipeline.fuse_lora(lora_scale=0.8)
        pipeline.unload_lora_weights()
    fused = fuse_loras(source, [(tmp_path / NAME, 0.8)])
    changed = set()
    for folder in ("unet", "text_encoder"):
        wanted = state(getattr(pipeline, folder))
        for key, weight in fused.parts[folder].weights.items():
            want = wanted[key] if key in wanted else wanted[f"text_model.{key}"]
            # The sum is rounded to the float16 of the checkpoint: half a unit in the last of 11 bits.
            assert torch.allclose(weight.read().float(), want, rtol=2**-11, atol=1e-6), key
            if not torch.equal(weight.read(), source.parts[folder].weights[key].read()):
                changed.add(key)
    assert len(changed) == len({key.split(".lora")[0].split(".alpha")[0] for key in load_file(tmp_path / NAME)})


@pytest.mark.parametrize("use_rslora", [False, True])
def test_alpha_in_the_metadata(checkpoint: Path, tmp_path: Path, use_rslora: bool) -> None:
    """As peft's config has it, one for all of a component but for the modules that a pattern names."""
    pytest.importorskip("peft")
    source = open_source(checkpoint)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tensors = peft(source, ())
    config = {"r": RANK, "lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 1.5}, "use_rslora": use_rslora}
    config["target_modules"] = [*UNET, CONVOLUTION]
    metadata = {METADATA: json.dumps({f"unet.{key}": value for key, value in config.items()})}
    save_file(tensors, tmp_path / NAME, {"format": "pt"} | metadata)
    pipeline = load_pipeline(checkpoint)
    with quiet():
        pipeline.load_lora_weights(tmp_path, weight_name=NAME)
        pipeline.fuse_lora(lora_scale=0.8)
        pipeline.unload_lora_weights()
    wanted, fused = state(pipeline.unet), fuse_loras(source, [(tmp_path / NAME, 0.8)]).parts["unet"].weights
    for key in (f"{module}.weight" for module in (*UNET, CONVOLUTION)):
        assert not torch.allclose(fused[key].read(), source.parts["unet"].weights[key].read(), rtol=2**-11, atol=1e-2)
        assert torch.allclose(fused[key].read().float(), wanted[key], rtol=2**-11, atol=1e-6), key


@pytest.mark.parametrize("metadata", ["{", "[]", json.dumps({"unet.lora_alpha": 1, "unet.alpha_pattern": {"(": 1}})])
def test_metadata_that_makes_no_sense(checkpoint: Path, tmp_path: Path, metadata: str) -> None:
    save_file(peft(open_source(checkpoint), ()), tmp_path / NAME, {METADATA: metadata})
    with pytest.raises(
        ExportError, match=r"lora_adapter_metadata in its header cannot be read \(.*\); save the LoRA ag"
    ):
        fuse_loras(open_source(checkpoint), [(tmp_path / NAME, 1.0)])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_what_is_stored_can_be_told_by_what_was_stored_without(checkpoint: Path, tmp_path: Path, dtype: str) -> None:
    """From the factors that the bundle keeps, to the last bit: two LoRAs, one of them with a convolution as three."""
    source = open_source(checkpoint)
    tensors = peft(source, ())
    inputs = source.parts["unet"].weights[f"{CONVOLUTION}.weight"].shape[1]
    tensors[f"unet.{CONVOLUTION}.lora_A.weight"] = torch.randn(RANK, inputs, 1, 1)
    tensors[f"unet.{CONVOLUTION}.lora_mid.weight"] = torch.randn(RANK, RANK, 3, 3)
    save_file(tensors, tmp_path / NAME)
    fused = fuse_loras(source, [(tmp_path / NAME, 0.8), (tmp_path / NAME, 0.1)])
    for name, each in (("base", source), ("fused", fused)):
        stored = {key: cast(weight, dtype) for key, weight in each.parts["unet"].weights.items()}
        write_tensors(tmp_path / name, stored)
    assert factors_of(stored).keys() == {
        name for module in (*UNET, CONVOLUTION) for i in range(2) for name in factor_names(f"{module}.weight", i)
    }
    write_tensors(tmp_path / "factors", factors_of(stored))
    base = FileRecord.of(tmp_path / "base")
    patch = make_patch(tmp_path / "fused", tmp_path / "base", base, tmp_path / "factors")
    assert patch is not None
    assert {piece.weight for piece in patch.pieces} == {None, *(f"{module}.weight" for module in (*UNET, CONVOLUTION))}
    assert patch.new.bytes == 0


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_sums_are_rounded_as_torch_rounds_them(dtype: str) -> None:
    bits = torch.randint(0x3F000000, 0x40000000, (1 << 16,), dtype=torch.int32)
    bits[::4] &= -1 << 15  # in the middle between two of bfloat16
    bits[1::4] &= -1 << 12  # and of float16
    values = bits.view(torch.float32)
    wanted = values.to(TORCH_DTYPES[dtype]).view(torch.uint8).numpy().tobytes()
    assert encode(values.numpy(), dtype) == wanted


def test_a_bundle_keeps_the_factors(checkpoint: Path, tmp_path: Path) -> None:
    """Beside the weights of a component that has them."""
    source = open_source(checkpoint)
    save_file({key: t for key, t in peft(source).items() if key.startswith("text_encoder")}, tmp_path / NAME)
    part = fuse_loras(source, [(tmp_path / NAME, 0.8)]).parts["text_encoder"]
    (record,) = (c for c in FAMILIES["sd"].components if c.folder == "text_encoder")
    export_component(part, record, EXPORT_FAMILIES["sd"]["text_encoder"], {}, tmp_path, Options())
    assert len(FactorFile(tmp_path / "text_encoder" / FACTORS).of(f"{TEXT[0]}.weight")) == 1


def plain(source: Source) -> tuple[str, torch.Tensor]:
    """A weight that is fused below, in float64."""
    key = f"{ATTENTION}.to_q.weight"
    return key, source.parts["unet"].weights[key].read().double()


@pytest.mark.parametrize(
    "module",
    [
        f"lora_unet_{ATTENTION.replace('.', '_')}_to_q",
        # the original code's block: the first behind conv_in
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        f"unet.{ATTENTION}.to_q",
    ],
)
def test_what_is_added(checkpoint: Path, tmp_path: Path, module: str) -> None:
    source = open_source(checkpoint)
    key, base = plain(source)
    down, up = torch.randn(RANK, base.shape[1]), torch.randn(base.shape[0], RANK)
    tensors = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(1.5)}
    save_file({f"{module}.{name}": tensor for name, tensor in tensors.items()}, tmp_path / NAME)
    fused = fuse_loras(source, [(tmp_path / NAME, 0.8), (tmp_path / NAME, -0.3)]).parts["unet"]
    wanted = base + (0.8 - 0.3) * 1.5 / RANK * up.double() @ down.double()
    # rounded twice to float16, once a LoRA
    assert torch.allclose(fused.weights[key].read().double(), wanted, rtol=2**-9, atol=4e-3)
    assert tmp_path / NAME in fused.files


def test_a_convolution_as_three(checkpoint: Path, tmp_path: Path) -> None:
    source = open_source(checkpoint)
    key = f"{CONVOLUTION}.weight"
    base = source.parts["unet"].weights[key].read().double()
    down = torch.randn(RANK, base.shape[1], 1, 1)
    mid, up = torch.randn(RANK, RANK, 3, 3), torch.randn(base.shape[0], RANK, 1, 1)
    module = f"lora_unet_{CONVOLUTION.replace('.', '_')}"
    tensors = {f"{module}.lora_{name}.weight": t for name, t in (("down", down), ("mid", mid), ("up", up))}
    save_file(tensors, tmp_path / NAME)
    # the three one after the other are one convolution: what they make of a unit impulse, mirrored, is its kernel
    impulse = torch.eye(base.shape[1], dtype=torch.float64)[:, :, None, None]
    impulse = torch.nn.functional.pad(impulse, (2, 2, 2, 2))
    answer = impulse
    for kernel in (down, mid, up):
        answer = torch.nn.functional.conv2d(answer, kernel.double())
    wanted = base + answer.flip(2, 3).transpose(0, 1)
    got = fuse_loras(source, [(tmp_path / NAME, 1.0)]).parts["unet"].weights[key].read().double()
    assert torch.allclose(got, wanted, rtol=2**-10, atol=1e-3)  # rounded to float16


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"lora_te2_text_model_x.lora_down.weight": (2, 4), "lora_te2_text_model_x.lora_up.weight": (4, 2)}, "another"),
        (
            {f"unet.{ATTENTION}.to_q.lora_A.weight": (2, 7), f"unet.{ATTENTION}.to_q.lora_B.weight": (32, 2)},
            r"lora.safetensors: unet_down_blocks.*to_q fits nothing in .*; a LoRA for another family",
        ),
        ({"lora_unet_x.hada_w1_a": (2, 2)}, r"lora_unet_x.hada_w1_a is no weight of a LoRA; linear and convolution"),
        ({"lora_unet_x.lora_down.weight": (2,), "lora_unet_x.lora_up.weight": (2,)}, r"matrices of \(2,\) and \(2,\)"),
        ({"lora_unet_x.lora_down.weight": (2, 2)}, r"lora_unet_x lacks its down or up matrix"),
        (
            {"lora_unet_x.lora_down.weight": (2, 2), "lora_unet_x.lora_up.weight": (2, 3)},
            r"lora_unet_x has matrices of \(2, 3\) and \(2, 2\), of which no product is; save the LoRA again",
        ),
    ],
)
def test_bad_files(checkpoint: Path, tmp_path: Path, tensors: dict[str, tuple[int, ...]], message: str) -> None:
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, tmp_path / NAME)
    with pytest.raises(ExportError, match=message):
        fuse_loras(open_source(checkpoint), [(tmp_path / NAME, 1.0)])


def test_a_pickled_file(checkpoint: Path) -> None:
    with pytest.raises(ExportError, match=r"x.pt: pickled weights.*convert them with: python -c "):
        fuse_loras(open_source(checkpoint), [(Path("x.pt"), 1.0)])
