from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.engines.profile import Profile, sizes_of
from edgediffusion.engines.recipe import STRIPPED, Recipe
from edgediffusion.engines.spec import GraphSpec, TensorSpec

from .conftest import HERE, RECIPE, SOURCE


def test_a_recipe_survives_json() -> None:
    assert Recipe.from_record(json.loads(json.dumps(RECIPE.to_record()))) == RECIPE
    with pytest.raises(ValueError, match="schema 1, this version reads 2"):
        Recipe.from_record(RECIPE.to_record() | {"schema": 1})


@pytest.mark.parametrize(
    "other",
    [
        *(replace(RECIPE, source=replace(SOURCE, **{name: "x"})) for name in vars(SOURCE)),
        *(replace(RECIPE, target=replace(HERE, **{name: "x"})) for name in vars(HERE)),
        replace(RECIPE, precision="float32"),
        replace(RECIPE, profiles=RECIPE.profiles * 2),
        replace(RECIPE, flags=()),
    ],
)
def test_whatever_decides_what_an_engine_is_decides_its_name(other: Recipe) -> None:
    assert other.name != RECIPE.name
    assert replace(other) == other


def test_a_name_says_the_component_and_variant() -> None:
    assert RECIPE.name.startswith("unet-")
    assert replace(RECIPE, source=replace(SOURCE, variant="controlnet")).name.startswith("unet.controlnet-")


def test_what_is_the_same_fits() -> None:
    assert RECIPE.differences(SOURCE, HERE) == []


@pytest.mark.parametrize(
    ("field", "there", "words"),
    [
        ("gpu", "NVIDIA A100", "GPU NVIDIA A100, here NVIDIA H100"),
        ("version", "8.6.0", "version 8.6.0, here 10.13.2.6"),
        ("compute_capability", "8.0", "compute capability 8.0, here 9.0"),
        ("driver", "580.105.08+", "driver 580.105.08+, here 580.95.05"),
        ("backend", "tensorrt_rtx", "backend tensorrt_rtx, here tensorrt"),
    ],
)
def test_another_machine_is_told_in_words(field: str, there: str, words: str) -> None:
    assert replace(RECIPE, target=replace(HERE, **{field: there})).differences(SOURCE, HERE) == [words]


@pytest.mark.parametrize(
    ("field", "wanted"),
    [
        ("gpu", ""),
        ("driver", "580.65.06+"),
        ("driver", "9.1+"),
        ("compute_capability", "8.0+"),
        ("compute_capability", "8.9, 9.0"),
    ],
)
def test_an_engine_for_several_machines_fits_each(field: str, wanted: str) -> None:
    assert replace(RECIPE, target=replace(HERE, **{field: wanted})).differences(SOURCE, HERE) == []


def test_a_machine_that_knows_no_driver_is_not_new_enough() -> None:
    recipe = replace(RECIPE, target=replace(HERE, driver="580.65+"))
    assert recipe.differences(SOURCE, replace(HERE, driver="")) == ["driver 580.65+, here none"]


def test_another_bundle_is_told_in_words() -> None:
    other = replace(SOURCE, graph="c" * 64, weights="d" * 64)
    assert RECIPE.differences(other, HERE) == [
        "graph aaaaaaaaaaaa, here cccccccccccc",
        "weights bbbbbbbbbbbb, here dddddddddddd",
    ]


def test_a_plan_without_weights_takes_any() -> None:
    stripped = replace(RECIPE, source=replace(SOURCE, weights=STRIPPED))
    assert stripped.differences(SOURCE, HERE) == []
    assert stripped.differences(replace(SOURCE, graph="c" * 64), HERE) != []


SPEC = GraphSpec(
    "unet",
    (TensorSpec("sample", "float32", ("batch", 4, "height", "width")), TensorSpec("timestep", "float32", (1,))),
    (),
)


def test_shapes_of_a_profile() -> None:
    (profile,) = RECIPE.profiles
    assert profile.shapes(SPEC.inputs[0]) == ((2, 4, 64, 64), (2, 4, 64, 64), (2, 4, 64, 96))
    assert profile.shapes(SPEC.inputs[1]) == ((1,), (1,), (1,))
    assert str(profile) == "batch 2, height 64, width 64-96 (best 64)"
    assert not profile.is_static
    assert Profile.of({"batch": 2}).is_static


@pytest.mark.parametrize(
    ("shape", "covered"), [((2, 4, 64, 80), True), ((2, 4, 64, 97), False), ((1, 4, 64, 64), False)]
)
def test_what_a_profile_covers(shape: tuple[int, ...], covered: bool) -> None:
    sizes = sizes_of(SPEC, {"sample": np.zeros(shape), "timestep": np.zeros(1)})
    assert RECIPE.profiles[0].covers(sizes) is covered


def test_sizes_that_do_not_rise() -> None:
    with pytest.raises(UsageError, match="batch: sizes 1, 3, 2; they must rise, from 1"):
        Profile.of({"batch": (1, 3, 2)})
    with pytest.raises(UsageError, match="batch: sizes 0, 0, 0; they must rise, from 1"):
        Profile.of({"batch": 0})
