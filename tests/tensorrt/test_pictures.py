"""What engines draw, against ONNX Runtime on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgediffusion.runtime.pipeline import BUILTIN

from .conftest import DRAWING, STEPS, Machine, checked, output, psnr, read, reference

LEAST = 60  # dB, in float32: what rounds otherwise is below one of 255 levels
HALF = 30
OPTIONS = ["refit", "version_compatible", "hardware_compatible", "weight_stripped", "weight_streaming"]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["128x128", "192x128"])
def test_several_pictures_at_once(size: str, built: Machine, tmp_path: Path) -> None:
    built.run(*built.generate(tmp_path / "two.png", "--no-build", "--size", size, "--num-images", 2))
    for i, expected in enumerate(reference(size, 2), 1):
        assert psnr(read(tmp_path / f"two-{i}.png"), expected) > LEAST


def take_turns(machine: Machine, sizes: list[str], folder: Path) -> None:
    """One process draws them again and again: launches that were captured for one are replayed after another."""
    job = {"prompt": "a red apple", "seed": 0, "num_inference_steps": STEPS}
    order = sizes * 3
    lines = [json.dumps(job | dict(zip(("width", "height"), map(int, size.split("x")), strict=True))) for size in order]
    (folder / "turns.jsonl").write_text("\n".join(lines))
    (folder / "drawn").mkdir()
    machine.run("run", folder / "turns.jsonl", "-o", folder / "drawn", "--backend", machine.backend, "--no-build")
    pictures = sorted((folder / "drawn").glob("*.png"))
    for picture, size in zip(pictures, order, strict=True):
        assert psnr(read(picture), reference(size)[0]) > LEAST


def test_sizes_by_turns(built: Machine, tmp_path: Path) -> None:
    take_turns(built, ["128x128", "192x128"], tmp_path)


@pytest.mark.slow
def test_any_size_between(machine: Machine, tmp_path: Path) -> None:
    machine.run(*machine.build("--shapes", "128x128,192x128", "--dynamic", "--jobs", 3, *DRAWING))
    take_turns(machine, ["128x128", "160x128", "192x128"], tmp_path)


def test_a_size_outside_every_profile(built: Machine, tmp_path: Path) -> None:
    arguments = built.generate(tmp_path / "none.png", "--no-build", "--size", "256x256")
    built.run(*arguments, status=2, says=r"no engine for .*; there are: .*; edgediffusion build .* --shapes")
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_options_of_the_builder(option: str, stocked: Machine) -> None:
    build = stocked.build("--component", "unet", f"--{option.replace('_', '-')}")
    stocked.engine("unet").remove()
    if option not in stocked.version.options:
        stocked.run(*build, status=2, says=f"has no --{option.replace('_', '-')}; leave it out")
        return
    process = stocked.start(*build)
    text = output(process)
    if "lean runtime is not installed" in text:
        pytest.skip(text)
    checked(text, process.returncode)
    assert option in stocked.engine("unet").recipe.flags
    assert psnr(stocked.draw(), reference()[0]) > LEAST


@pytest.mark.slow
def test_against_torch(machine: Machine) -> None:
    """Engines for what the bundle's own outputs are of, built as they are needed."""
    verify = ["verify", BUILTIN, "--backend", machine.backend]
    machine.run(*verify, says="building an engine of unet")
    assert len(list(machine.store.entries())) == 5
    machine.run(*verify, "--no-build")


@pytest.mark.slow
def test_half_precision(machine: Machine, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("diffusers", reason="a bundle in float16 is exported")
    from edgediffusion.export.options import Options
    from edgediffusion.export.write_bundle import export_bundle

    bundle = tmp_path / "half"
    export_bundle(request.getfixturevalue("checkpoint"), bundle, Options(dtype={"": "float16"}))
    machine.run(*machine.build("--jobs", 3, *DRAWING, bundle=bundle))
    assert machine.engine("unet").recipe.precision == "float16"
    assert psnr(machine.draw(bundle=bundle), reference("64x64", bundle=bundle)[0]) > HALF


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["gpu"], indirect=True, scope="session")
def test_onnx_runtime_with_tensorrt(machine: Machine) -> None:
    import onnxruntime

    provider = {"tensorrt": "TensorrtExecutionProvider", "tensorrt_rtx": "NvTensorRTRTXExecutionProvider"}
    if provider[machine.backend] not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime here has no {provider[machine.backend]}")
    device = machine.backend.replace("tensorrt_rtx", "nv_tensorrt_rtx")
    picture = machine.draw("--backend", "ort", "--provider", device)
    assert psnr(picture, reference()[0]) > HALF
    assert list((machine.store.folder / "ort").iterdir())
