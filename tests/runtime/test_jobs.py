from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from edgediffusion.runtime import GeneratedImage
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.metadata import read_parameters

from .conftest import Opened, names

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("folder")


def job(bundle: str, *options: str, file: str = "job.txt") -> int:
    return main(["generate", "--prompts", file, "--bundle", bundle, "--num-inference-steps", "1", *options])


def drawn(opened: Opened) -> int:
    return sum(name == "vae_decoder" for name, _ in opened.calls)


def test_a_prompt_a_line(bundle: str, folder: Path, capsys: Capture) -> None:
    Path("job.txt").write_text("a red apple\n\n  a blue car \n", encoding="utf-8")
    assert job(bundle, "--seed", "3", "-o", "out.webp") == 0
    assert capsys.readouterr() == ("out-1.webp\nout-3.webp\n", "")
    found = {name: read_parameters(folder / name) for name in names(folder) if name != "job.txt"}
    assert {name: (p.prompt, p.seed) for name, p in found.items()} == {
        "out-1.webp": ("a red apple", 3),
        "out-3.webp": ("a blue car", 3),
    }


def test_json_lines_take_any_parameter(bundle: str, folder: Path) -> None:
    Image.new("RGB", (16, 16), "grey").save("start.png")
    Path("job.jsonl").write_text(
        '{"prompt": "a car", "seed": 7, "num_images": 2, "width": 24, "negative_prompt": "red"}\n'
        '{"sigmas": [14.0, 3.5], "num_inference_steps": 2, "scheduler": "euler", "vae_tiling": true}\n'
        '{"prompt": "a rocket", "image": "start.png", "strength": 0.5, "num_inference_steps": 4}\n'
    )
    assert job(bundle, "a default", "--seed", "1", file="job.jsonl") == 0
    assert names(folder) == ["job-1-1.png", "job-1-2.png", "job-2.png", "job-3.png", "job.jsonl", "start.png"]
    two = read_parameters(folder / "job-1-2.png")
    assert (two.seed, two.width, two.negative_prompt, two.num_inference_steps) == (8, 24, "red", 1)
    assert read_parameters(folder / "job-2.png").prompt == "a default"
    assert read_parameters(folder / "job-2.png").sigmas == "14.0,3.5"
    assert read_parameters(folder / "job-2.png").vae_tiling
    assert read_parameters(folder / "job-3.png").strength == 0.5


def test_a_full_disk_in_the_middle(
    bundle: str, folder: Path, opened: Opened, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was finished stays, and the same command goes on from there, whatever the seeds were."""
    Path("job.jsonl").write_text('{"prompt": "a car"}\n{"prompt": "an apple", "num_images": 3}\n')
    save, room = GeneratedImage.save, iter([True, True, False])

    def save_while_there_is_room(self: GeneratedImage, path: str | Path) -> None:
        if not next(room):
            Path(path).write_bytes(b"half a pict")
            raise OSError(28, "No space left on device")
        save(self, path)

    with monkeypatch.context() as full:
        full.setattr(GeneratedImage, "save", save_while_there_is_room)
        assert job(bundle, file="job.jsonl") == 2
    assert "job-2-2.png cannot be written: No space left on device" in capsys.readouterr().err
    finished = {name: (folder / name).read_bytes() for name in names(folder)}
    assert set(finished) == {"job-1.png", "job-2-1.png", "job.jsonl"}
    opened.calls.clear()
    assert job(bundle, file="job.jsonl") == 0
    assert capsys.readouterr().out == ("job-1.png (was there)\njob-2-1.png (was there)\njob-2-2.png\njob-2-3.png\n")
    assert drawn(opened) == 2
    assert {name: (folder / name).read_bytes() for name in finished} == finished
    opened.calls.clear()
    assert job(bundle, file="job.jsonl") == 0
    assert drawn(opened) == 0


def test_a_name_that_another_picture_has(bundle: str, folder: Path, capsys: Capture) -> None:
    Path("job.txt").write_text("a car\n")
    assert job(bundle, "--seed", "1") == 0
    before = (folder / "job-1.png").read_bytes()
    capsys.readouterr()
    assert job(bundle, "--seed", "2") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "job-1.png: another picture, with seed 1, where the job has 2; name another --output, or" in line
    assert (folder / "job-1.png").read_bytes() == before
    assert job(bundle, "--seed", "2", "--force") == 0
    assert read_parameters(folder / "job-1.png").seed == 2


def test_without_a_seed_any_is_right_but_not_another_prompt(bundle: str, capsys: Capture) -> None:
    Path("job.txt").write_text("a car\n")
    assert job(bundle) == 0
    assert job(bundle) == 0
    Path("job.txt").write_text("a rocket\n")
    assert job(bundle) == 2
    assert "with prompt 'a car', where the job has 'a rocket'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("job.jsonl", '{"prompt": "x"}\n\n{"prompt": "y", "steps": 3}', "job.jsonl, line 3: unknown key 'steps'; kno"),
        ("job.jsonl", '{"prompt": "y"', "job.jsonl, line 1: cannot be read (Expecting"),
        (
            "job.jsonl",
            "3",
            'line 1: cannot be read (got int, wanted a JSON object); wanted a line such as {"prompt": "a ',
        ),
        ("job.jsonl", '{"prompt": "x", "guidance_scale": 1' + "0" * 400 + "}", "0; wanted float"),
        ("job.jsonl", '{"seed": 1}', "job.jsonl, line 1: no prompt"),
        ("job.jsonl", '{"prompt": "x", "seed": "1"}', 'job.jsonl, line 1: seed "1"; wanted int'),
        ("job.jsonl", '{"prompt": "x", "seed": true}', "job.jsonl, line 1: seed true; wanted int"),
        ("job.jsonl", '{"prompt": "x", "seed": null}', "job.jsonl, line 1: seed null; wanted int"),
        ("job.jsonl", '{"prompt": "x", "guidance_interval": ["a"]}', 'line 1: guidance_interval ["a"]; wanted tuple'),
        (
            "job.jsonl",
            '{"prompt": "x", "controlnet_conditioning_scale": [true]}',
            "scale [true]; wanted float | Sequen",
        ),
        ("job.jsonl", '{"prompt": "x", "control_images": [1]}', "control_images [1]; wanted Sequence[file name]"),
        ("job.jsonl", '{"prompt": "x", "vae_tiling": 1}', "job.jsonl, line 1: vae_tiling 1; wanted bool"),
        ("job.jsonl", '{"prompt": "\\ud800"}', "job.jsonl, line 1: cannot be read ('utf-8' codec can't encode"),
        ("job.jsonl", "[" * 100_000, "job.jsonl, line 1: cannot be read (nested too deeply"),
        ("job.jsonl", '{"prompt": "x", "image": 1}', "job.jsonl, line 1: image 1; wanted file name"),
        ("job.jsonl", '{"prompt": "x", "image": "none.png"}', "none.png: cannot be read as a picture"),
        ("job.jsonl", '{"prompt": "x"}\n{"prompt": "x", "width": 9}', "job.jsonl, line 2: width 9; wanted a positive"),
        ("job.txt", "\n", "job.txt: it is empty; wanted a prompt a line"),
        ("none.txt", None, "none.txt: cannot be read as a list of prompts"),
    ],
)
def test_lines_that_cannot_be_used(
    file: str, text: str | None, message: str, bundle: str, opened: Opened, capsys: Capture
) -> None:
    """Said before anything is drawn."""
    if text is not None:
        Path(file).write_text(text)
    assert job(bundle, file=file) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert drawn(opened) == 0


def test_the_known_keys_are_named(bundle: str, capsys: Capture) -> None:
    Path("job.jsonl").write_text('{"promt": "x"}')
    assert job(bundle, file="job.jsonl") == 2
    err = capsys.readouterr().err
    assert all(name in err for name in ("control_images", "image", "num_images", "prompt", "seed", "sigmas", "width"))
    assert "latents" not in err
