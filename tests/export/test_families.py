"""Every family at tiny size: whole bundles, whose graphs agree with torch in float32 and hold no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from edgediffusion.engines.registry import open_engine
from edgediffusion.export.families import FAMILIES, Sample
from edgediffusion.export.sources import open_source, read_json
from edgediffusion.export.verify import references, relative_error
from edgediffusion.export.weights import load, read_header
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES
from edgediffusion.runtime.manifest import Manifest

from ..conftest import SLOW

# Checkpoint of tests/conftest.py -> family, components.
XL = ("text_encoder_2", "unet", "vae_decoder", "vae_encoder")
SD = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
CASES = {
    "sd": ("sd", ("image_encoder", *SD)),
    "sd2": ("sd", SD),
    "sd_inpaint": ("sd_inpaint", SD),
    "sd_pix2pix": ("sd_pix2pix", SD),
    "sd_taesd": ("sd", SD),
    "lcm": ("lcm", SD),
    "sdxl": ("sdxl", ("text_encoder", *XL)),
    "sdxl_inpaint": ("sdxl_inpaint", ("text_encoder", *XL)),
    "sdxl_refiner": ("sdxl_refiner", XL),
}


def test_both_sides_of_the_wall_know_the_same_families_and_components() -> None:
    assert FAMILIES.keys() == RUNTIME_FAMILIES.keys()
    for name, family in RUNTIME_FAMILIES.items():
        assert {component.folder for component in family.components} == FAMILIES[name].keys(), name


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in CASES])
def case(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_family_and_components(case: str, bundles: Callable[[str], Path], checkpoints: Callable[[str], Path]) -> None:
    family, components = CASES[case]
    manifest = Manifest.read(bundles(case))
    assert (manifest.family, tuple(sorted(manifest.graphs))) == (family, components)
    assert open_source(checkpoints(case)).family == family


def test_graphs_agree_with_torch(case: str, bundles: Callable[[str], Path]) -> None:
    for name, record in Manifest.read(bundles(case)).graphs.items():
        assert 0 < record.parity.error < 2e-5, name


def test_every_parameter_is_in_the_weights_file_and_none_is_stored_twice(
    case: str, bundles: Callable[[str], Path], checkpoints: Callable[[str], Path]
) -> None:
    found: list[str] = []
    for name, record in Manifest.read(bundles(case)).graphs.items():
        model = onnx.load(bundles(case) / record.model, load_external_data=False)
        external = {tensor.name for tensor in model.graph.initializer if uses_external_data(tensor)}
        stored = read_header(bundles(case) / record.weights)
        assert external == stored.keys(), name
        assert len({tensor.offset for tensor in stored.values()}) == len(stored)
        found += [f"{name.removesuffix('_decoder').removesuffix('_encoder')}.{key}" for key in stored]
        assert (bundles(case) / record.model).stat().st_size < 300_000
    assert len(found) == len(set(found))
    wanted = sum(len(read_header(path)) for path in checkpoints(case).rglob("*.safetensors"))
    assert len(found) == wanted


def test_no_arithmetic_on_shapes(case: str, bundles: Callable[[str], Path]) -> None:
    """What the CUDA provider would compute on the CPU. A Shape goes straight into a Reshape or a Resize."""
    for name, record in Manifest.read(bundles(case)).graphs.items():
        nodes = onnx.load(bundles(case) / record.model, load_external_data=False).graph.node
        assert not {node.op_type for node in nodes} & {"Size", "NonZero", "Range", "Expand", "GatherND", "CumSum"}, name
        shapes = {node.output[0] for node in nodes if node.op_type == "Shape"}
        assert {node.op_type for node in nodes if shapes.intersection(node.input)} <= {"Reshape", "Resize"}, name


def test_one_graph_for_every_size(bundles: Callable[[str], Path]) -> None:
    """Of a UNet of two levels: sizes that it halves evenly or not, in batches of 1 to 3, prompts of 1 to 3 chunks."""
    unet = bundles("sdxl") / "unet"
    network, config = FAMILIES["sdxl"]["unet"], read_json(unet / "config.json")
    spec, rng = network.spec(config), np.random.default_rng(0)
    module = network.module(config).eval()
    weights = read_header(unet / "diffusion_pytorch_model.safetensors")
    module.load_state_dict({key: load(key, weight) for key, weight in weights.items()})
    samples = []
    for shape in ((1, 8, 8, 77), (2, 5, 12, 154), (3, 7, 3, 231)):
        sizes = dict(zip(("batch", "height", "width", "sequence_length"), shape, strict=True))
        shapes = {tensor.name: [sizes[d] if isinstance(d, str) else d for d in tensor.shape] for tensor in spec.inputs}
        feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        samples.append(Sample(str(shape), feeds))
    with open_engine(unet / "model.onnx", spec, device="cpu") as engine:
        for sample, wanted in zip(samples, references(module, spec, samples), strict=True):
            assert relative_error(engine(sample.feeds), wanted) < 2e-5, sample.label


@pytest.mark.slow
def test_inputs_of_the_unet_of_each_family(bundles: Callable[[str], Path]) -> None:
    def shapes(name: str) -> dict[str, tuple[int | str, ...]]:
        return {tensor.name: tensor.shape for tensor in Manifest.read(bundles(name)).graphs["unet"].spec.inputs}

    plain = {"sample": ("batch", 4, "height", "width"), "timestep": (1,)}
    text = "encoder_hidden_states"
    sd = plain | {text: ("batch", "sequence_length", 32)}
    assert shapes("sd") == shapes("sd2") == sd
    assert shapes("sd_inpaint") == sd | {"sample": ("batch", 9, "height", "width")}
    assert shapes("sd_pix2pix") == sd | {"sample": ("batch", 8, "height", "width")}
    assert shapes("lcm") == sd | {"timestep_cond": ("batch", 12)}
    xl = plain | {text: ("batch", "sequence_length", 56), "text_embeds": ("batch", 20), "time_ids": ("batch", 6)}
    assert shapes("sdxl") == xl
    assert shapes("sdxl_inpaint") == xl | {"sample": ("batch", 9, "height", "width")}
    assert shapes("sdxl_refiner") == xl | {text: ("batch", "sequence_length", 24), "time_ids": ("batch", 5)}
