"""What a safety checker in the bundle flags is black, and says so. Beside diffusers' it is tested with the export."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.build_plan import Wanted, parts_of
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.manifest import MANIFEST, FileRecord, GraphRecord, LatentRGB, Manifest, Parity
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.safety import UnsafePicture, is_unsafe

from . import conftest
from .conftest import Opened, names

SPEC = GraphSpec(
    "safety_checker",
    (TensorSpec("clip_input", "float32", ("batch", 3, 8, 8)),),
    (
        TensorSpec("special_scores", "float32", ("batch", 3)),
        TensorSpec("concept_scores", "float32", ("batch", 17)),
    ),
)
SEED = 5  # with the next one: of "apple" at two steps one is flagged by `dark`, the other is not


def dark(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Flags a picture that is darker than most of these."""
    over = -feeds["clip_input"].mean(axis=(1, 2, 3))[:, None] - LIMIT
    return {"special_scores": np.full((1, 3), -1, np.float32), "concept_scores": over.repeat(17, axis=1)}


LIMIT = 0.0


@pytest.fixture
def checked(bundle_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundle with a checker that flags the darker of two pictures."""
    graph = GraphRecord(
        model="safety_checker/model.onnx",
        weights="safety_checker/model.safetensors",
        spec=SPEC,
        parity=Parity(error=0.0, tolerance=1e-4, worst="zeros"),
        dtype="float32",
        weights_dtype="float32",
    )
    manifest = Manifest.read(bundle_path)
    files = dict(manifest.files)
    (bundle_path / "safety_checker").mkdir()
    for name, content in ((graph.model, b"graph"), (graph.weights, b"weights")):
        (bundle_path / name).write_bytes(content)
        files[name] = FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    projection = LatentRGB(weights=((0.5,) * 3,) * 4, bias=(0.0,) * 3, r2=0.5)
    graphs = {**manifest.graphs, "safety_checker": graph}
    changed = dataclasses.replace(manifest, graphs=graphs, files=files, latent_rgb=projection)
    (bundle_path / MANIFEST).write_text(changed.to_json())
    monkeypatch.setitem(conftest.FUNCTIONS, "safety_checker", dark)
    with Pipeline.load(bundle_path, safety_checker=False) as pipeline:
        assert "safety_checker" not in opened.names
        pictures = pipeline("apple", seed=SEED, num_images=2, num_inference_steps=2)
    means = [-float(_seen(picture.image)) for picture in pictures]
    monkeypatch.setattr(f"{__name__}.LIMIT", sum(means) / 2)
    return bundle_path


def _seen(image: Image.Image) -> float:
    from edgediffusion.runtime import scoring

    small = np.asarray(image.resize((8, 8), Image.Resampling.BICUBIC), np.float32) / 255
    return float(((small - np.array(scoring._MEAN)) / np.array(scoring._STD)).mean())


def test_what_is_flagged_is_black_and_says_so(checked: Path, opened: Opened, tmp_path: Path) -> None:
    with Pipeline.load(checked, safety_checker=False) as unchecked:
        plain = unchecked("apple", seed=SEED, num_images=2, num_inference_steps=2)
    with Pipeline.load(checked) as pipeline, pytest.warns(UnsafePicture) as warned:
        pictures = pipeline("apple", seed=SEED, num_images=2, num_inference_steps=2)
    flagged = [bool(picture.parameters.nsfw_content_detected) for picture in pictures]
    assert sorted(flagged) == [False, True]
    k = flagged.index(True)
    assert [str(warning.message) for warning in warned] == [
        f"the safety checker flagged the picture of seed {SEED + k}: it is black; take another seed or prompt, or "
        "leave the checker out with --no-safety-checker"
    ]
    assert pictures[k].image.getextrema() == ((0, 0),) * 3
    assert pictures[1 - k].image.tobytes() == plain[1 - k].image.tobytes()
    assert pictures[1 - k].parameters == plain[1 - k].parameters
    for suffix in (".png", ".webp"):
        pictures[k].save(tmp_path / f"a{suffix}")
        assert read_parameters(tmp_path / f"a{suffix}").nsfw_content_detected


@pytest.mark.filterwarnings("always::edgediffusion.runtime.safety.UnsafePicture")
def test_from_the_command_line(checked: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = ["--bundle", str(checked)]
    told = ["apple", "--seed", str(SEED), "--num-images", "2", "--num-inference-steps", "2"]
    assert main(["generate", *bundle, *told, "-o", "a.png", "--save-steps", "steps.png"]) == 0
    assert capsys.readouterr().err.count("edgediffusion: warning: the safety checker flagged the picture of seed") == 1
    assert len(names(folder)) == 3  # of the picture that was flagged no steps are written
    black = {k for k in (0, 1) if Image.open(folder / f"a-{k + 1}.png").getextrema()[0] == (0, 0)}
    assert len(black) == 1
    (k,) = black
    assert main(["inspect", f"a-{k + 1}.png"]) == 0
    assert "nsfw_content_detected  True" in capsys.readouterr().out
    assert main(["generate", *bundle, "--from", f"a-{k + 1}.png", "--no-safety-checker", "-o", "b.png"]) == 0
    assert Image.open(folder / "b.png").getextrema()[0] != (0, 0)
    assert not read_parameters(folder / "b.png").nsfw_content_detected
    (folder / "job.txt").write_text("apple")
    job = ["generate", *bundle, "--prompts", "job.txt", "--seed", str(SEED + k), "--num-inference-steps", "2"]
    assert main(job) == main(job) == 0
    # As far as the job goes a black picture is drawn.
    assert capsys.readouterr().out.endswith("job-1.png\njob-1.png (was there)\n")


@pytest.mark.parametrize(
    ("special", "concept", "unsafe"),
    [
        (-0.5, -0.0004, False),
        (-0.5, 0.0004, False),  # three digits
        (-0.5, 0.0006, True),
        (-0.0004, -0.005, False),
        (0.0006, -0.005, True),  # a special concept lowers the others' thresholds by 0.01
        (0.0006, -0.0104, False),
    ],
)
def test_the_decision(special: float, concept: float, unsafe: bool) -> None:
    special_scores, concept_scores = np.full(3, -0.5, np.float32), np.full(17, -0.5, np.float32)
    special_scores[1], concept_scores[16] = special, concept
    assert is_unsafe(special_scores, concept_scores) == unsafe


def test_an_engine_is_built_for_it(checked: Path) -> None:
    with Pipeline.load(checked) as pipeline:
        manifest = pipeline.bundle.manifest
        graphs = {name: manifest.graphs[name] for name in ("unet", "safety_checker")}
        manifest = dataclasses.replace(manifest, graphs=graphs)
        wanted = Wanted(sizes=((16, 16),))
        _, part = parts_of(manifest, pipeline.bundle.family, pipeline.latent_space, wanted)
    assert part.model == Path("safety_checker/model.onnx")
    assert [str(profile) for profile in part.profiles] == ["batch 1"]
