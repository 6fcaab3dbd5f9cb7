"""Every family at tiny size: whole bundles, whose graphs agree with torch in float32 and hold no weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx.external_data_helper import uses_external_data

from edgediffusion.export.families import FAMILIES
from edgediffusion.export.sources import open_source
from edgediffusion.export.weights import read_header
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES
from edgediffusion.runtime.manifest import Manifest

# Checkpoint of tests/conftest.py -> family, components.
XL = ("text_encoder_2", "unet", "vae_decoder", "vae_encoder")
CASES = {
    "sd": ("sd", ("image_encoder", "text_encoder", "unet", "vae_decoder", "vae_encoder")),
    "sdxl": ("sdxl", ("text_encoder", *XL)),
    "sdxl_refiner": ("sdxl_refiner", XL),
}


def test_both_sides_of_the_wall_know_the_same_families_and_components() -> None:
    assert FAMILIES.keys() == RUNTIME_FAMILIES.keys()
    for name, family in RUNTIME_FAMILIES.items():
        assert {component.folder for component in family.components} == FAMILIES[name].keys(), name


@pytest.fixture(params=CASES)
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


def test_inputs_of_the_unet_of_each_family(bundles: Callable[[str], Path]) -> None:
    def shapes(name: str) -> dict[str, tuple[int | str, ...]]:
        return {tensor.name: tensor.shape for tensor in Manifest.read(bundles(name)).graphs["unet"].spec.inputs}

    plain = {"sample": ("batch", 4, "height", "width"), "timestep": (1,)}
    text = "encoder_hidden_states"
    assert shapes("sd") == plain | {text: ("batch", 77, 32)}
    xl = plain | {text: ("batch", 77, 56), "text_embeds": ("batch", 20), "time_ids": ("batch", 6)}
    assert shapes("sdxl") == xl
    assert shapes("sdxl_refiner") == xl | {text: ("batch", 77, 24), "time_ids": ("batch", 5)}
