"""Colours, records and the packed file, on synthetic pictures."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgediffusion.engines.errors import UsageError
from edgediffusion.export.builtin import colours, data
from edgediffusion.export.builtin.captions import recoloured_captions
from edgediffusion.export.builtin.records import Record, chosen, describe

RGB = {"red": (220, 30, 30), "orange": (245, 130, 20), "yellow": (250, 210, 40), "green": (40, 170, 60)} | {
    "blue": (40, 110, 230),
    "purple": (140, 60, 210),
    "pink": (250, 130, 190),
    "brown": (130, 80, 45),
    "grey": (120, 120, 120),
}


def disc(colour: tuple[int, int, int], outline: tuple[int, int, int] = (0, 0, 0)) -> colours.U8:
    """A disc with an outline, on white."""
    y, x = np.mgrid[: data.SIZE, : data.SIZE] - data.SIZE / 2
    radius = np.hypot(x, y)
    image = np.full((data.SIZE, data.SIZE, 3), 255, np.uint8)
    image[radius < 60] = outline
    image[radius < 54] = colour
    return image


def record(image: colours.U8, subgroup: str = "transport-ground", label: str = "automobile") -> Record:
    return describe("1f697", "3d", label, "travel-places", subgroup, image, image.min(axis=-1) < 255)


def recoloured(image: colours.U8, record: Record, target: str) -> colours.U8:
    return colours.recolour_to(image, record.hue, record.saturation, record.value, target)


def test_chosen_drops_variants_flags_and_signs() -> None:
    groups = {
        "groups": {"4": "food-drink", "9": "flags", "1": "people-body"},
        "subgroups": {"42": "food-fruit", "98": "country-flag", "30": "family"},
    }
    rows: list[dict[str, Any]] = [
        {"label": "red apple", "hexcode": "1F34E", "group": 4, "subgroup": 42},
        {"label": "flag: Peru", "hexcode": "1F1F5-1F1EA", "group": 9, "subgroup": 98},
        {"label": "family: man, boy", "hexcode": "1F468-200D-1F466", "group": 1, "subgroup": 30},
        {"label": "regional indicator A", "hexcode": "1F1E6"},
    ]
    assert list(chosen(rows, groups)) == [("1f34e", "red apple", "food-drink", "food-fruit")]


@pytest.mark.parametrize("name", RGB)
def test_colour_of_a_synthetic_picture(name: str) -> None:
    image = disc(RGB[name])
    found = colours.dominant_colour(image, image.min(axis=-1) < 255)
    if name == "grey":
        assert found is None
    else:
        assert found is not None
        assert colours.colour_name(found.hue, found.saturation, found.value) == name
        assert found.share == pytest.approx(1)


@pytest.mark.parametrize(("value", "name"), [(0.1, "black"), (0.5, "grey"), (0.95, "white")])
def test_colour_name_of_greys(value: float, name: str) -> None:
    assert colours.colour_name(0, 0, value) == name


def test_hsv_round_trip_is_exact() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    np.testing.assert_array_equal(colours.hsv_to_rgb(*colours.rgb_to_hsv(image)), image)


def test_recolour_moves_the_hue_as_told() -> None:
    image = disc(RGB["red"])
    moved = colours.recolour(image, 120)
    before, after = (colours.rgb_to_hsv(x)[0][64, 64] for x in (image, moved))
    assert (after - before) % 360 == pytest.approx(120, abs=1)


def test_recolour_leaves_white_grey_and_black() -> None:
    grey = np.stack([np.arange(256, dtype=np.uint8)] * 3, axis=-1)[None]
    np.testing.assert_array_equal(colours.recolour(grey, 120, saturation=3, value=2), grey)
    image = disc(RGB["red"])
    moved = colours.recolour(image, 120, saturation=2, value=2)
    still = np.ptp(image, axis=-1) == 0
    np.testing.assert_array_equal(moved[still], image[still])


def test_recolour_moves_only_hues_near_the_given_one() -> None:
    image = disc(RGB["red"])
    image[60:68, 60:68] = RGB["blue"]
    moved = colours.recolour(image, 120, hue=0)
    np.testing.assert_array_equal(moved[62:66, 62:66], image[62:66, 62:66])
    assert (moved[40, 64] != image[40, 64]).any()


@pytest.mark.parametrize("start", ["red", "yellow", "blue", "brown"])
def test_recoloured_pictures_have_the_colour_they_claim(start: str) -> None:
    image = disc(RGB[start])
    car = record(image)
    assert start not in car.targets
    assert len(car.targets) >= 6 if start != "brown" else len(car.targets) >= 5
    for target in car.targets:
        found = colours.dominant_colour(recoloured(image, car, target), image.min(axis=-1) < 255)
        assert found is not None
        assert colours.colour_name(found.hue, found.saturation, found.value) == target


def test_faces_and_food_are_not_recoloured() -> None:
    assert record(disc(RGB["yellow"]), "face-smiling", "grinning face").targets == ()
    assert record(disc(RGB["yellow"]), "food-prepared", "pizza").targets == ()
    assert record(disc(RGB["yellow"]), "transport-ground", "taxi").targets == ()


def test_frame_fills_the_picture_and_keeps_the_aspect() -> None:
    source = Image.new("RGBA", (300, 300))
    source.paste((200, 0, 0, 255), (100, 50, 150, 150))  # 50 wide, 100 high
    image, mask = data.frame(source)
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    assert (rows[0], rows[-1]) == (data.MARGIN, data.SIZE - data.MARGIN - 1)
    assert columns.size == 60
    assert tuple(image[0, 0]) == (255, 255, 255)
    assert tuple(image[64, 64]) == (200, 0, 0)
    with pytest.raises(UsageError, match="empty picture"):
        data.frame(Image.new("RGBA", (8, 8)))


def pack(path: Path, images: list[colours.U8]) -> list[Record]:
    records = [record(image) for image in images]
    records = [Record(**{**vars(r), "id": f"1f69{i}"}) for i, r in enumerate(records)]
    data.write_pack(path, records, [data.encode(image) for image in images], [])
    return records


@pytest.mark.parametrize("workers", [1, 4])
def test_pack_and_load(tmp_path: Path, workers: int) -> None:
    images = [disc(RGB["red"]), disc(RGB["grey"]), disc(RGB["blue"])]
    records = pack(tmp_path / "pack.zip", images)
    loaded = data.load(tmp_path / "pack.zip", workers=workers)
    assert loaded.images.shape == (sum(1 + len(r.targets) for r in records), data.SIZE, data.SIZE, 3)
    assert loaded.images.dtype == np.uint8
    assert len(loaded.captions) == len(loaded.styles) == len(loaded.weights) == len(loaded.images)
    np.testing.assert_array_equal(loaded.images[0], images[0])
    assert loaded.weights[0] == 1
    assert loaded.weights[1] == np.float32(data.RECOLOURED_WEIGHT)
    assert "a red car" in loaded.captions[0]
    blue = loaded.captions.index(recoloured_captions(records[0].subjects, "blue", "3d"))
    np.testing.assert_array_equal(loaded.images[blue], recoloured(images[0], records[0], "blue"))
    assert not list(tmp_path.glob("*.partial"))


def test_load_of_a_missing_or_bad_file_says_so_in_one_line(tmp_path: Path) -> None:
    bad, other, old, empty = (tmp_path / f"{name}.zip" for name in ("bad", "other", "old", "empty"))
    bad.write_bytes(b"no zip")
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme", "")
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("index.json", json.dumps({"format": 99, "records": []}))
    data.write_pack(empty, [], [], [])
    cases = {
        tmp_path / "none.zip": "no packed data at",
        bad: "is no packed data or is damaged",
        other: "is no packed data or is damaged",
        old: "has format 99",
        empty: "holds no pictures",
    }
    for path, message in cases.items():
        with pytest.raises(UsageError, match=message) as caught:
            data.load(path)
        assert "\n" not in str(caught.value)


def test_load_refuses_a_picture_of_another_size(tmp_path: Path) -> None:
    data.write_pack(tmp_path / "p.zip", [record(disc(RGB["red"]))], [data.encode(np.zeros((8, 8, 3), np.uint8))], [])
    with pytest.raises(UsageError, match=r"is \(8, 8, 3\), expected \(128, 128, 3\)"):
        data.load(tmp_path / "p.zip")
