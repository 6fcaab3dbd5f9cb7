"""Words of the pictures."""

from __future__ import annotations

import pytest

from edgediffusion.export.builtin import captions


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("red apple", "a "),
        ("apple", "an "),
        ("unicorn", "a "),
        ("umbrella", "an "),
        ("ufo", "a "),
        ("hourglass", "an "),
        ("x-ray", "an "),
        ("8 ball", "an "),
        ("grapes", ""),
        ("bus", "a "),
        ("octopus", "an "),
        ("glasses", ""),
        ("scissors", ""),
        ("glass of milk", "a "),
        ("slice of pizza", "a "),
        ("bread", ""),
        ("loaf of bread", "a "),
        ("hot dog", "a "),
        ("people with bunny ears", ""),
        ("man with a beard", "a "),
        ("person lifting weights", "a "),
        ("clapping hands", ""),
        ("santa claus", ""),
        ("statue of liberty", "the "),
        ("stack of books", "a "),
        ("ewe", "a "),
    ],
)
def test_article(subject: str, expected: str) -> None:
    assert captions.article(subject) == expected


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ("red apple", "apple"),
        ("light blue heart", "heart"),
        ("orange", "orange"),
        ("orange fruit", "orange fruit"),
        ("man with red hair",) * 2,
    ],
)
def test_strip_colour(subject: str, expected: str) -> None:
    assert captions.strip_colour(subject) == expected


@pytest.mark.parametrize(
    ("label", "subgroup", "first"),
    [
        ("automobile", "transport-ground", "car"),
        ("man: red hair", "person", "man with red hair"),
        ("woman: bald", "person", "bald woman"),
        ("woman health worker", "person-role", "female doctor"),
        ("person in lotus position", "person-resting", "person meditating"),
        ("three o\u2019clock", "time", "clock showing three o'clock"),
        ("Piñata", "game", "pinata"),
    ],
)
def test_subjects(label: str, subgroup: str, first: str) -> None:
    assert captions.subjects_of(label, subgroup)[0] == first


def test_names_are_plain_and_unique() -> None:
    rows = [line.partition(" = ")[0] for line in captions.NAMES.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == len(set(rows))
    for subjects in captions.names().values():
        assert all(s == captions.plain(s).strip() and s for s in subjects)


def test_captions_of_an_original_name_its_colour() -> None:
    words = captions.captions(("car", "automobile"), "red", "3d")
    assert words[:3] == ["a car, 3d", "a car", "car, 3d"]
    assert "a red car" in words
    assert "a red automobile, 3d" in words
    assert len(words) == len(set(words)) == 12


def test_captions_without_a_colour_name_none() -> None:
    assert captions.captions(("car",), "", "noto") == ["a car, noto", "a car", "car, noto"]


def test_captions_of_a_label_with_a_colour_drop_it() -> None:
    words = captions.captions(("red apple",), "red", "noto")
    assert words[0] == "a red apple, noto"
    assert "an apple" in words
    assert not any("red red" in w for w in words)


def test_captions_of_a_recolouring_carry_only_the_new_colour() -> None:
    blue_apple = ["a blue apple, 3d", "a blue apple", "blue apple, 3d"]
    assert captions.recoloured_captions(("red apple", "red"), "blue", "3d") == blue_apple
    assert captions.recoloured_captions(("orange fruit", "tangerine"), "blue", "3d")[0] == "a blue tangerine, 3d"
