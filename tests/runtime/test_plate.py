from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.plate import contact_sheet, labels, plate, variants

from .conftest import Opened

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("folder")
SWEEP: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "scheduler": [("ddim", {"scheduler": "ddim"}), ("euler", {"scheduler": "euler"})],
    "seed": [("1", {"seed": 1}), ("2", {"seed": 2})],
    "size": [("24x8", {"width": 24, "height": 8})],
}


def generate(bundle: Path, *arguments: str) -> int:
    return main(["generate", *arguments, "--bundle", str(bundle), "--num-inference-steps", "2"])


def test_the_last_option_goes_across() -> None:
    rows = variants(SWEEP)
    assert [len(row) for row in rows] == [1, 1, 1, 1]
    assert rows[2][0] == {"scheduler": "euler", "seed": 1, "width": 24, "height": 8}
    assert labels(SWEEP) == (
        ["scheduler ddim, seed 1", "scheduler ddim, seed 2", "scheduler euler, seed 1", "scheduler euler, seed 2"],
        ["size 24x8"],
    )


def test_pictures_are_whole_on_a_plate_and_labels_beside_them() -> None:
    red, blue, small = (
        Image.new("RGB", size, c) for size, c in [((60, 40), "red"), ((60, 40), "blue"), ((9, 9), "lime")]
    )
    pixels = np.asarray(plate([[red, blue], [small, red]], ["one", "two"], ["a", "b"]).image)
    count = {colour: (pixels == colour).all(-1).sum() for colour in [(255, 0, 0), (0, 0, 255), (0, 255, 0)]}
    assert count == {(255, 0, 0): 4800, (0, 0, 255): 2400, (0, 255, 0): 81}
    ys, xs = np.nonzero((pixels == (255, 0, 0)).all(-1))
    dark_ys, dark_xs = np.nonzero((pixels < 100).all(-1))
    assert ((dark_xs < xs.min()) | (dark_ys < ys.min())).all()
    assert (dark_xs < xs.min()).any()
    assert (dark_ys < ys.min()).any()


@pytest.mark.parametrize(("pictures", "columns", "rows"), [(1, 1, 1), (2, 2, 1), (5, 3, 2), (16, 4, 4)])
def test_a_contact_sheet_is_nearly_square(pictures: int, columns: int, rows: int) -> None:
    sheet = contact_sheet([Image.new("RGB", (32, 16))] * pictures).image
    assert sheet.size == (4 + columns * 36, 4 + rows * 20)


def test_a_sweep(bundle_path: Path, opened: Opened, folder: Path, capsys: Capture) -> None:
    """All variants have one seed, though none was told."""
    sweep = ["--sweep", "scheduler=euler,ddim", "--sweep", "steps=2,3"]
    assert generate(bundle_path, "a car", *sweep, "--size", "40x40", "-o", "plate.png") == 0
    assert capsys.readouterr() == ("plate.png\n", "")
    unet = [feeds["sample"] for name, feeds in opened.calls if name == "unet"]
    assert len(unet) == 2 * (2 + 3)
    # Euler shows the UNet sigma / sqrt(sigma^2 + 1) of the noise, 0.998 of it, in the first step.
    np.testing.assert_allclose(unet[2], unet[0], rtol=0.01)
    with Image.open(folder / "plate.png") as image:
        assert image.size > (3 * 40, 2 * 40)


def test_a_sweep_over_prompts(bundle_path: Path, opened: Opened) -> None:
    assert generate(bundle_path, "x", "--sweep", "prompt=a car,an apple", "-o", "plate.webp") == 0
    assert sum(name == "vae_decoder" for name, _ in opened.calls) == 2


def test_a_grid_beside_its_pictures(bundle_path: Path, opened: Opened, folder: Path, capsys: Capture) -> None:
    assert generate(bundle_path, "a car", "--num-images", "4", "--grid", "--seed", "0", "-o", "a.png") == 0
    assert capsys.readouterr().out.split() == ["a-1.png", "a-2.png", "a-3.png", "a-4.png", "a-grid.png"]
    sheet = np.asarray(Image.open(folder / "a-grid.png"))
    last = np.asarray(Pipeline.load(bundle_path)("a car", seed=3, num_inference_steps=2)[0].image)
    np.testing.assert_array_equal(sheet[-4 - 16 : -4, -4 - 16 : -4], last)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--sweep steps", "argument --sweep: 'steps', wanted NAME=A,B, such as scheduler=ddim,euler or steps=5,10"),
        ("--sweep steps=5,,6", "argument --sweep: 'steps=5,,6', wanted NAME=A,B"),
        ("--sweep steps=few", "argument --num-inference-steps: invalid int value: 'few'"),
        ("--sweep stairs=1,2", "unrecognized arguments: --stairs=1"),
        ("--sweep output=a.png,b.png", "sweep output: it is no setting of a picture; wanted one such as scheduler"),
        ("--sweep num-images=1,2", "sweep num-images: it is no setting of a picture"),
        ("--sweep scheduler=euler,eulerian", "unknown scheduler 'eulerian'"),
        ("--sweep steps=1,2 --num-images 2", "--sweep and --num-images 2: there is one picture of each variant"),
        ("--sweep steps=1,2 --grid", "--sweep and --grid: wanted one of them"),
        ("--prompts a.txt --best-of 2", "--prompts and --best-of: wanted one of them"),
        ("--best-of 2 --num-images 3", "--best-of 2: wanted at least --num-images, 3"),
        ("--best-of 2", "this model has no image_encoder, which scores pictures; leave --best-of out"),
    ],
)
def test_what_cannot_be_used(
    options: str, message: str, bundle_path: Path, opened: Opened, folder: Path, capsys: Capture
) -> None:
    assert generate(bundle_path, "x", *options.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert list(folder.iterdir()) == []
