"""Each sampler against diffusers, step by step, with diffusers itself made to compute in float64."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.schedulers.scheduling_utils import AysSchedules, KarrasDiffusionSchedulers

from edgediffusion.bench.parity.__main__ import row
from edgediffusion.bench.parity.cases import FLAGS, RTOL, SD15, Family
from edgediffusion.bench.parity.reference import (
    Comparison,
    Latents,
    compare,
    double,
    network,
    normal,
    our_path,
    parity,
    their_path,
    their_scheduler,
)
from edgediffusion.bench.parity.stochastic_cases import ALL
from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.schedulers import SAMPLERS, SCHEDULERS, make_scheduler
from edgediffusion.runtime.schedulers.beta_distribution import beta_ppf
from edgediffusion.runtime.schedulers.config import SIGMA_FLAGS, SchedulerConfig
from edgediffusion.runtime.schedulers.levels import with_mu

CLASSES = tuple(dict.fromkeys(family.name for family in ALL))
OF_FAMILY = [pytest.param(family.name, SD15 | family.settings, id=family.title) for family in ALL]
SPACED = tuple(name for name in CLASSES if name not in ("IPNDMScheduler",) and "EDM" not in name and "Flow" not in name)


@pytest.fixture(autouse=True)
def scipy(request: pytest.FixtureRequest) -> None:
    """diffusers needs it for one sampler and one schedule, and torchsde for another sampler."""
    if "LMSDiscreteScheduler" in request.node.name or "-beta]" in request.node.name:
        pytest.importorskip("scipy")
    if "DPMSolverSDEScheduler" in request.node.name:
        pytest.importorskip("torchsde")


@pytest.mark.parametrize(
    ("family", "sigmas"),
    [pytest.param(f, s, id=f"{f.title}-{s}") for f in ALL for s in f.sigmas],
)
def test_every_case(family: Family, sigmas: str) -> None:
    count = 0
    for case, comparison in parity(family, sigmas):
        assert comparison.failure is None, f"{case}: {comparison.failure}"
        count += 1
    assert count > 0


def test_every_sigma_schedule_that_diffusers_has_is_among_the_cases() -> None:
    flags = {flag: sigmas for sigmas, options in FLAGS.items() for flag in options if flag.startswith("use_")}
    for family in ALL:
        parameters = inspect.signature(getattr(diffusers, family.name).__init__).parameters
        assert set(family.sigmas) == {"model"} | {flags[key] for key in flags.keys() & parameters.keys()}, family.title


def test_every_class_is_among_the_cases() -> None:
    assert {entry.name for entry in KarrasDiffusionSchedulers} <= set(CLASSES)
    assert {sampler.diffusers for sampler in SAMPLERS if sampler.diffusers} == set(CLASSES)


def compared(name: str, config: dict[str, Any], steps: int, *, start: int = 0) -> Comparison:
    noise = normal(np.float64)
    with double(name):
        theirs = their_path(their_scheduler(name, config), steps, noise, start=start)
    return compare(our_path(name, config, steps, noise, start), theirs, RTOL)


@pytest.mark.parametrize("start", [1, 2, 4, 7, 9])
@pytest.mark.parametrize(("name", "config"), OF_FAMILY)
def test_a_start_in_the_middle(name: str, config: dict[str, Any], start: int) -> None:
    """As an image-to-image pipeline starts, with no history: at the first of the calls of a step."""
    calls = next(sampler.calls_per_step for sampler in SAMPLERS if sampler.diffusers == name)
    assert compared(name, config, 10, start=start * calls).failure is None


@pytest.mark.parametrize(("name", "config"), OF_FAMILY)
def test_as_diffusers_is(name: str, config: dict[str, Any]) -> None:
    # diffusers unchanged: its tables are float32, so alphas_cumprod carries a few 1e-7 by the end of its cumprod. They
    # grow where the difference of two levels is divided by, or an early signal that is almost nothing.
    noise = normal(np.float32)
    for steps in (4, 10, 25):
        theirs = their_path(their_scheduler(name, config), steps, noise)
        ours = our_path(name, config, steps, noise)
        assert all(latents.dtype == np.float32 for _, latents in ours)
        comparison = compare(ours, theirs, 1e-4)
        assert comparison.failure is None, comparison.failure


@pytest.mark.parametrize("source", [*CLASSES, "PNDMScheduler"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_from_the_config_of_another_class(name: str, source: str) -> None:
    config = dict(their_scheduler(source, SD15 | {"_class_name": source}).config)
    assert compared(name, config, 10).failure is None


@pytest.mark.parametrize("name", CLASSES)
def test_from_a_config_that_says_nothing(name: str) -> None:
    assert compared(name, {}, 10).failure is None


# Keys that are arguments of other methods of ours, or of no number.
NEUTRAL = {
    "noise_sampler_seed",
    "variance_type",
    "solver_p",
    "base_shift",
    "max_shift",
    "base_image_seq_len",
    "max_image_seq_len",
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_key_of_diffusers_is_read_or_refused(name: str) -> None:
    """Whatever key diffusers' class knows is one that the sampler reads, or of which it refuses what it lacks."""
    keys = set(inspect.signature(getattr(diffusers, name).__init__).parameters) - {"self"}
    reader = next(sampler.reader for sampler in SAMPLERS if sampler.diffusers == name)
    for key in keys - NEUTRAL - reader.reads - set(vars(SchedulerConfig())) - SIGMA_FLAGS.keys():
        with pytest.raises(UsageError, match=f"{key} 'x' is not supported"):
            SCHEDULERS[name](SD15 | {key: "x"}, 10)


@pytest.mark.parametrize("source", [entry.name for entry in KarrasDiffusionSchedulers])
@pytest.mark.parametrize("name", SPACED)
def test_a_default_config_of_every_class_is_understood(name: str, source: str) -> None:
    parameters = inspect.signature(getattr(diffusers, source).__init__).parameters
    config = {key: value.default for key, value in parameters.items() if value.default is not value.empty}
    config |= {"prediction_type": "epsilon", "beta_schedule": "linear", "final_sigmas_type": "zero"}
    assert len(SCHEDULERS[name](config, 10).timesteps) >= 10


def their_listed_path(name: str, config: dict[str, Any], **lists: Any) -> list[tuple[float, Latents]]:
    """With sigmas or timesteps given as lists."""
    scheduler = their_scheduler(name, config)
    plain = scheduler.set_timesteps
    scheduler.set_timesteps = lambda _: plain(**lists)
    return their_path(scheduler, 0, normal(np.float64))


LISTS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("EulerDiscreteScheduler", {}, {"timesteps": [999.0, 600.0, 300.0, 20.0]}, {}),
    ("EulerDiscreteScheduler", {}, {"sigmas": [14.0, 5.0, 1.0, 0.1, 0.0]}, {}),
    ("EulerDiscreteScheduler", {}, {"sigmas": AysSchedules["StableDiffusionSigmas"]}, {"sigmas": "ays"}),
    ("EulerDiscreteScheduler", {}, {"sigmas": AysSchedules["StableDiffusionXLSigmas"]}, {"sigmas": "ays_sdxl"}),
    ("HeunDiscreteScheduler", {}, {"timesteps": [999.0, 600.0, 300.0, 20.0]}, {}),
    ("DPMSolverMultistepScheduler", {}, {"timesteps": AysSchedules["StableDiffusionTimesteps"]}, {}),
    ("DPMSolverSinglestepScheduler", {}, {"timesteps": [999, 850, 500, 300, 20]}, {}),
    ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, {"sigmas": [0.9, 0.5, 0.2]}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}, {"sigmas": [0.9, 0.5, 0.2]}, {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift": 2.0}, {"timesteps": [1000, 700, 20]}, {}),
]


@pytest.mark.parametrize(("name", "options", "lists", "ours"), LISTS, ids=str)
def test_lists(name: str, options: dict[str, Any], lists: dict[str, Any], ours: dict[str, Any]) -> None:
    config = SD15 | options
    with double(name):
        # UniPC changes the array that it is given
        theirs = their_listed_path(name, config, **{key: np.array(values) for key, values in lists.items()})
    steps = len(theirs) if name != "HeunDiscreteScheduler" else (len(theirs) + 1) // 2
    scheduler = make_scheduler(name, config, steps, **(ours or lists))
    latents: Latents = normal(np.float64) * scheduler.init_noise_sigma
    history: tuple[Latents, ...] = ()
    path = []
    for i, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(latents, i), float(t))
        latents, history = scheduler.step(output, i, latents, history, None)
        path.append((float(t), latents))
    assert compare(path, theirs, RTOL).failure is None


def test_mu_of_a_size() -> None:
    for shape in ((1, 4, 16, 16), (4, 128, 96), (2, 4, 33, 65)):
        mu = with_mu({"use_dynamic_shifting": True}, shape)["mu"]
        assert mu == pytest.approx(calculate_shift((shape[-2] // 2) * (shape[-1] // 2)), rel=1e-12)
    own = {"base_image_seq_len": 100, "max_image_seq_len": 900, "base_shift": 0.2, "max_shift": 2.0}
    mu = with_mu(own | {"use_dynamic_shifting": True}, (4, 32, 32))["mu"]
    assert mu == pytest.approx(calculate_shift(256, 100, 900, 0.2, 2.0), rel=1e-12)
    assert with_mu({"use_dynamic_shifting": True, "mu": 0.8}, (4, 32, 32))["mu"] == 0.8
    assert with_mu(own, (4, 32, 32)) is own


def test_beta_ppf() -> None:
    stats = pytest.importorskip("scipy.stats")
    p = np.concatenate([np.linspace(0, 1, 1001), 10.0 ** -np.arange(1, 17)])
    np.testing.assert_allclose(beta_ppf(p, 0.6), stats.beta.ppf(p, 0.6, 0.6), rtol=1e-14, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers
@pytest.mark.parametrize("name", [name for name in CLASSES if name != "IPNDMScheduler"])
def test_noisy_latents(name: str) -> None:
    """Of image-to-image: at the first call of each step, diffusers' own add_noise or scale_noise."""
    import torch

    x0, noise = normal(np.float64, 1), normal(np.float64, 2)
    ours = SCHEDULERS[name](SD15, 10)
    calls = next(sampler.calls_per_step for sampler in SAMPLERS if sampler.diffusers == name)
    with double(name):
        theirs = their_scheduler(name, SD15)
        theirs.set_timesteps(10)
        for i, t in list(enumerate(theirs.timesteps))[::calls]:
            theirs.set_timesteps(10)
            if hasattr(theirs, "set_begin_index"):
                theirs.set_begin_index(i)
            arguments = [torch.from_numpy(x0), torch.from_numpy(noise), torch.stack([t])]
            if hasattr(theirs, "scale_noise"):
                expected = theirs.scale_noise(arguments[0], arguments[2], arguments[1])
            else:
                expected = theirs.add_noise(*arguments)
            np.testing.assert_allclose(ours.add_noise(x0, noise, i), expected.numpy(), rtol=1e-9, err_msg=f"call {i}")


def test_the_readme_has_a_row_of_every_sampler_and_a_dash_where_diffusers_has_no_schedule() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    for family in ALL:
        none = row(family, {sigmas: [Comparison(0.0, None)] for sigmas in family.sigmas})
        shape = re.escape(none.rpartition(f" {len(family.sigmas)} |")[0]).replace(r"0e\+00", r"\de[+-]\d\d")
        assert re.search(rf"^{shape} \d+ \|$", readme, re.MULTILINE), family.title
