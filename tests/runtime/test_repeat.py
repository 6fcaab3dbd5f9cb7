from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgediffusion.runtime.cli import main
from edgediffusion.runtime.manifest import MANIFEST
from edgediffusion.runtime.metadata import Parameters, read_parameters

Capture = pytest.CaptureFixture[str]
pytestmark = [
    pytest.mark.usefixtures("folder"),
    pytest.mark.filterwarnings("default::edgediffusion.runtime.repeat.NotRepeated"),
]


def generate(*arguments: str) -> int:
    return main(["generate", *arguments])


def pixels(name: str) -> bytes:
    with Image.open(name) as image:
        return image.tobytes()


def from_elsewhere(text: str) -> None:
    info = PngInfo()
    info.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save("web.png", pnginfo=info)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_a_picture_is_repeated_exactly(ending: str, bundle: str, capsys: Capture) -> None:
    told = (
        "--seed 3 --size 24x16 --num-inference-steps 3 --noise torch-cpu --sigmas 14.0,3.5,0.5 --negative-prompt red "
        f"--guidance-scale 2.5 --scheduler dpmpp_2m --num-images 2 -o first.{ending}"
    )
    assert generate("a red apple", "--bundle", bundle, *told.split()) == 0
    assert generate("--from", f"first-2.{ending}", "--bundle", bundle, "-o", f"again.{ending}") == 0
    assert capsys.readouterr().err == ""
    assert read_parameters(Path(f"again.{ending}")) == read_parameters(Path(f"first-2.{ending}"))
    assert read_parameters(Path(f"again.{ending}")).seed == 4
    assert pixels(f"again.{ending}") == pixels(f"first-2.{ending}")


def test_what_is_told_beside_overrides(bundle: str) -> None:
    assert generate("a car", "--bundle", bundle, "--seed", "3", "--num-inference-steps", "3", "-o", "a.png") == 0
    assert generate("a rocket", "--from", "a.png", "--seed", "0", "--size", "8x8", "--bundle", bundle) == 0
    record = read_parameters(Path("a-rocket.png"))
    assert (record.prompt, record.seed, record.width, record.num_inference_steps) == ("a rocket", 0, 8, 3)


def test_a_picture_of_another_model(bundle: str, bundle_path: Path, capsys: Capture) -> None:
    assert generate("a car", "--bundle", bundle, "--seed", "3", "-o", "a.png") == 0
    first = read_parameters(Path("a.png")).model_hash
    manifest = json.loads((bundle_path / MANIFEST).read_text())
    (bundle_path / MANIFEST).write_text(json.dumps(manifest | {"source": "a renamed one"}))
    capsys.readouterr()
    assert generate("--from", "a.png", "--bundle", bundle, "-o", "b.png") == 0
    assert capsys.readouterr() == (
        "b.png\n",
        f"edgediffusion: warning: a.png: drawn by 'a test' ({first}), and this is 'a renamed one' ({first})\n",
    )


def test_a_picture_of_the_web_ui(bundle: str, capsys: Capture) -> None:
    """Its noise is a GPU's, whatever made it."""
    from_elsewhere(
        "a castle\nNegative prompt: people\nSteps: 4, Sampler: DPM++ 2M Karras, CFG scale: 5, Seed: 9, Size: 24x16, "
        "Model hash: 6ce0161689, Model: v1-5, Denoising strength: 0.5, Hires upscale: 2, VAE hash: 12, Version: v1.8"
    )
    assert generate("--from", "web.png", "--bundle", bundle, "-o", "a.png") == 0
    (other,) = capsys.readouterr().err.splitlines()
    assert "drawn by 'v1-5' (6ce0161689), and this is 'a test'" in other
    told = "--scheduler dpmpp_2m --sigmas karras --num-inference-steps 4 --guidance-scale 5 --seed 9 --size 24x16"
    noise = "--negative-prompt people --noise torch-cuda --hires-scale 2 --hires-strength 0.5 -o b.png"
    assert generate("a castle", "--bundle", bundle, *told.split(), *noise.split()) == 0
    assert read_parameters(Path("a.png")) == read_parameters(Path("b.png"))
    assert pixels("a.png") == pixels("b.png")


def test_a_second_pass_of_the_web_ui_as_far_as_there_are_settings(bundle: str, capsys: Capture) -> None:
    settings = "Hires upscale: 1.5, Hires upscaler: R-ESRGAN 4x+, Hires steps: 9, Denoising strength: 0.7"
    from_elsewhere(f"a castle\nSteps: 4, Sampler: Euler, Seed: 9, Size: 16x16, {settings}")
    assert generate("--from", "web.png", "--bundle", bundle, "-o", "a.png") == 0
    message = "not repeated, for want of such a setting: Hires upscaler R-ESRGAN 4x+, Hires steps 9\n"
    assert capsys.readouterr().err.endswith(message)
    made = read_parameters(Path("a.png"))
    assert (made.hires_scale, made.hires_strength, made.hires_upscaler) == (1.5, 0.7, "pixels")


@pytest.mark.parametrize(("shown", "upscaler"), [("Latent", "latent"), ("Lanczos", "pixels")])
def test_what_enlarges_has_another_name_in_the_web_ui(shown: str, upscaler: str) -> None:
    parameters = Parameters.from_text(f"a castle\nSteps: 4, Hires upscale: 2, Hires upscaler: {shown}")
    assert (parameters.hires_upscaler, dict(parameters.other)) == (upscaler, {})


def test_a_picture_of_the_web_ui_drawn_with_the_noise_of_a_cpu(bundle: str) -> None:
    from_elsewhere("a castle\nSteps: 4, Sampler: Euler, Seed: 9, RNG: CPU")
    assert generate("--from", "web.png", "--bundle", bundle, "-o", "a.png") == 0
    assert read_parameters(Path("a.png")).noise == "torch-cpu"


def test_a_picture_that_another_one_was_made_of(bundle: str, capsys: Capture) -> None:
    Image.fromarray(np.full((16, 16, 3), 90, np.uint8)).save("start.png")
    start = ["--init-image", "start.png"]
    assert generate("a car", *start, "--strength", "0.5", "--seed", "1", "--bundle", bundle, "-o", "a.png") == 0
    assert generate("--from", "a.png", *start, "--bundle", bundle, "-o", "b.png") == 0
    assert pixels("a.png") == pixels("b.png")
    capsys.readouterr()
    assert generate("--from", "a.png", "--bundle", bundle) == 2
    assert "a.png: drawn with strength 0.5 from image that it does not hold; give it with --init-image" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "web.png: no parameters in this picture, neither ours nor those of a web UI"),
        ("a castle", "web.png: it does not say its seed; give one with --seed"),
        ("a castle\nSteps: 4, Sampler: Restart, Seed: 1", "unknown scheduler 'Restart'; known: "),
    ],
)
def test_what_cannot_be_repeated(text: str | None, message: str, bundle: str, capsys: Capture) -> None:
    if text is None:
        Image.new("RGB", (8, 8)).save("web.png")
    else:
        from_elsewhere(text)
    assert generate("--from", "web.png", "--bundle", bundle) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert [path.name for path in Path().iterdir()] == ["web.png"]
