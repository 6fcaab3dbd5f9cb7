from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.metadata import Parameters, png_info, read_parameters, save

APPLE = Parameters(
    prompt="a red apple, 3d",
    negative_prompt="blurry",
    num_inference_steps=20,
    scheduler="dpmpp_2m",
    guidance_scale=7.5,
    seed=0,
    width=128,
    height=64,
    model="emoji",
    version="edgediffusion 0.1.0",
)

# Written by the web UI, v1.9: the form that pictures found elsewhere have.
ELSEWHERE = """castle, oil painting
on a hill
Negative prompt: people,
text
Steps: 25, Sampler: Euler a, Schedule type: Karras, CFG scale: 7, Seed: 965400086, Size: 512x768, \
Model hash: 6ce0161689, Model: v1-5-pruned, Lora hashes: "one: 1a2b, two: \\"3c\\"", Version: v1.9.4"""


def write(path: Path, **texts: str) -> Path:
    info = PngInfo()
    for key, text in texts.items():
        info.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return path


def test_the_text_is_the_web_uis() -> None:
    assert APPLE.to_text() == (
        "a red apple, 3d\nNegative prompt: blurry\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7.5, "
        "Seed: 0, Size: 128x64, Model: emoji, Version: edgediffusion 0.1.0"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prompt": ""},
        {"prompt": "", "negative_prompt": ""},
        {"prompt": "a line\u2028separator"},
        {"prompt": "two\nlines", "negative_prompt": "and\nthree\nmore"},
        {"prompt": "ein Äpfelchen 🍎"},
        {"model": 'a, "quoted": name\nover two lines'},
        {"guidance_scale": 7.0},
        {"scheduler": "a later one"},
        {"sigmas": "karras"},
        {"model_hash": "0123456789"},
        {"other": {"ENSD": "31337", "Lora hashes": "one: 1a2b, two: 3c"}},
    ],
)
def test_read_back(changes: dict[str, object], tmp_path: Path) -> None:
    parameters = dataclasses.replace(APPLE, **changes)  # type: ignore[arg-type]
    Image.new("RGB", (8, 8)).save(tmp_path / "both.png", pnginfo=png_info(parameters))
    assert read_parameters(tmp_path / "both.png") == parameters
    assert read_parameters(write(tmp_path / "text.png", parameters=parameters.to_text())) == parameters


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.webp"])
def test_every_format_carries_them_exactly(name: str, tmp_path: Path) -> None:
    parameters = dataclasses.replace(APPLE, prompt=" ein Äpfelchen 🍎\n", guidance_scale=0.1 + 0.2, noise="torch-cpu")
    grey = Image.new("RGB", (8, 8), "grey")
    save(grey, tmp_path / name, parameters)
    assert read_parameters(tmp_path / name) == parameters
    with Image.open(tmp_path / name) as image:
        assert image.convert("RGB").tobytes() == grey.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_the_text_where_the_web_ui_has_it(kind: str, tmp_path: Path) -> None:
    """piexif's UserComment: the encoding's name, then big-endian UTF-16."""
    name = f"a.{kind.lower()}"
    save(Image.new("RGB", (8, 8)), tmp_path / name, APPLE)
    with Image.open(tmp_path / name) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + APPLE.to_text().encode("utf-16-be")
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + ELSEWHERE.encode("utf-16-be")
    Image.new("RGB", (8, 8)).save(tmp_path / name, exif=exif)
    assert read_parameters(tmp_path / name) == Parameters.from_text(ELSEWHERE)


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a\.gif: pictures are written as \.png, .*\.webp; name it .*a\.png"):
        save(Image.new("RGB", (8, 8)), tmp_path / "a.gif", APPLE)
    with pytest.raises(UsageError, match=r"a\.jpg: JPEG cannot hold this picture \(.*too long.*\); name it \.png"):
        save(Image.new("RGB", (8, 8)), tmp_path / "a.jpg", dataclasses.replace(APPLE, prompt="x" * 70_000))


@pytest.mark.parametrize(
    ("shown", "scheduler", "sigmas"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", "karras"),
        ("DPM++ 2M, Schedule type: Exponential", "dpmpp_2m", "exponential"),
        ("DPM++ 2M, Schedule type: Automatic", "dpmpp_2m", None),
        ("DPM2 a", "dpm2_a", None),
        ("Restart", "Restart", None),
    ],
)
def test_samplers_of_the_web_ui(shown: str, scheduler: str, sigmas: str | None) -> None:
    parameters = Parameters.from_text(f"x\nSteps: 5, Sampler: {shown}, Seed: 1")
    assert (parameters.scheduler, parameters.sigmas, parameters.seed) == (scheduler, sigmas, 1)


def test_a_picture_of_version_0_0() -> None:
    """Before there was `model_hash`."""
    record = json.loads(APPLE.to_json())
    del record["model_hash"]
    assert Parameters.from_json(json.dumps(record)) == APPLE


def test_a_whole_guidance_scale_has_no_point() -> None:
    assert "CFG scale: 7, " in dataclasses.replace(APPLE, guidance_scale=7.0).to_text()


def test_the_json_is_exact_where_the_text_is_not(tmp_path: Path) -> None:
    parameters = dataclasses.replace(APPLE, prompt=" Negative prompt: \n Steps: ", guidance_scale=0.1 + 0.2)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=png_info(parameters))
    assert read_parameters(tmp_path / "a.png") == parameters


def test_a_picture_made_elsewhere(tmp_path: Path) -> None:
    assert read_parameters(write(tmp_path / "a.png", parameters=ELSEWHERE)) == Parameters(
        prompt="castle, oil painting\non a hill",
        negative_prompt="people,\ntext",
        num_inference_steps=25,
        scheduler="euler_a",
        sigmas="karras",
        guidance_scale=7.0,
        seed=965400086,
        width=512,
        height=768,
        model="v1-5-pruned",
        version="v1.9.4",
        model_hash="6ce0161689",
        other={"Lora hashes": 'one: 1a2b, two: "3c"'},
    )


def test_a_prompt_and_nothing_else(tmp_path: Path) -> None:
    parameters = read_parameters(write(tmp_path / "a.png", parameters="just, a: prompt"))
    assert parameters.prompt == "just, a: prompt"
    assert {
        value for name, value in vars(parameters).items() if name not in ("prompt", "negative_prompt", "other")
    } == {None}


def test_keys_of_a_later_version_are_passed_over() -> None:
    assert Parameters.from_json(APPLE.to_json().replace("{", '{"strength": 0.5, ', 1)) == APPLE


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, r"a\.png: no parameters in this picture, neither ours nor those of a web UI"),
        (
            {"parameters": "Steps: many, Seed: 1"},
            r"a\.png: parameters that cannot be understood \(invalid literal.*many",
        ),
        ({"edgediffusion": "{"}, r"a\.png: parameters that cannot be understood \(Expecting"),
        ({"edgediffusion": "[]"}, r"a\.png: parameters that cannot be understood"),
        ({"edgediffusion": "{}"}, r"a\.png: parameters that cannot be understood \(.*missing"),
    ],
)
def test_parameters_that_cannot_be_understood(texts: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        read_parameters(write(tmp_path / "a.png", **texts))


def test_no_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("not a picture")
    with pytest.raises(UsageError, match=r"a\.png: not a PNG, JPEG or WebP file"):
        read_parameters(tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"none\.png: cannot be read as a picture \(.*No such file"):
        read_parameters(tmp_path / "none.png")


def test_a_truncated_picture(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", parameters="x" * 1000)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UsageError, match=r"a\.png: (not a PNG|cannot be read as a picture)"):
        read_parameters(path)
