"""Records: which emoji are used, and what is known of each picture."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .captions import plain, subjects_of, word_set
from .colours import TARGETS, U8, colour_name, dominant_colour

DROPPED_SUBGROUPS = word_set(
    "country-flag subdivision-flag keycap alphanum gender zodiac av-symbol transport-sign skin-tone hair-style"
)
DROPPED_LABELS = re.compile(
    r"facing right|^(kiss|couple with heart|family): |thirty$|medium(-small)? square|small (square|\w+ square)$|"
    r"small \w+ diamond|^(back|end|on!|soon|top) arrow|moon viewing|copyright|registered|trade mark|curly loop|"
    r"part alternation|wavy dash|middle finger|square button|radio button|crossed flags|japanese symbol|name badge|"
    r"eight-|map of japan|cross mark button|check box|double exclamation|exclamation question|currency exchange|"
    r"^sparkle$|white (question|exclamation) mark|no one under|pregnant (man|person)|place of worship|"
    r"chart increasing with yen|distorted face|head shaking"
)
KEPT_SIGNS = frozenset({"wheelchair symbol"})

RECOLOURABLE_SUBGROUPS = word_set(
    "heart food-fruit plant-flower transport-ground transport-water transport-air place-building clothing sound music "
    "musical-instrument phone computer light-video book-paper office lock tool household writing mail science sport "
    "game event arrow animal-bird animal-marine animal-bug animal-reptile animal-amphibian arts-crafts other-object "
    "medical hotel time flag"
)
RECOLOURABLE_LABELS = word_set(
    "bell pepper|hot pepper|eggplant|mushroom|doughnut|lollipop|candy|cupcake|soft ice cream|cup with straw|teapot|"
    "closed umbrella|umbrella|umbrella with rain drops|umbrella on ground|star|ringed planet|alien monster|unicorn|"
    "tent|cat|dog|horse|fallen leaf|maple leaf|robot|question mark|red question mark|red exclamation mark|"
    "check mark|cross mark|credit card|glowing star|cyclone|comet|house|dragon face|frog|hollow red circle|"
    "heavy dollar sign|plus|splatter|droplet|circus tent|barber pole|carousel horse|military medal",
    "|",
)
FIXED_LABELS = re.compile(
    r"taxi|police|fire engine|ambulance|fire extinguisher|tangerine|watermelon|kiwi|avocado|pineapple|coconut|"
    r"christmas tree|jack-o|banknote|traffic light|stop sign|construction|red envelope|tanabata|pine decoration|"
    r"dolls|place medal|trophy|sports medal|drop of blood|statue|brick|rock$|wood$|mountain|railway track|motorway|"
    r"fireworks|sparkler|rainbow|rosette|cherries|speedboat|motor boat|pinata|badminton|pager|telescope|military medal|"
    r"prayer beads|skis$|blueberries|grapes|mango|olive|melon|film|picture|palette|"
    r"performing|flower playing|mahjong|suit$|white flag|black flag|lemon|lime$|penguin|dove|turkey|honeybee|"
    r"nest|phoenix|wilted|bouquet|sunflower|soap|tooth|moai|nazar|hamsa|cigarette|wheel|oil drum|x-ray|petri|dna|"
    r"satellite|globe|world|mirror ball|green book|blue book|orange book|heart decoration|"
    r"(orange|yellow|green|blue|light blue|purple|pink|brown|black|grey|white) heart|tokyo tower"
)
UNNAMED_SUBGROUPS = word_set(
    "place-map place-other sky-weather food-prepared food-asian food-sweet drink dishware cat-face monkey-face "
    "geometric religion warning"
)


@dataclass(frozen=True)
class Record:
    """One picture. `hue` in degrees, `saturation` and `value` in [0, 1] are those of its dominant colour."""

    id: str  # code points in lower-case hexadecimal joined by '-', without variation selectors
    style: str
    label: str
    subjects: tuple[str, ...]  # noun phrases without an article, most literal first
    group: str
    subgroup: str
    colour: str  # name of the dominant colour, '' where there is no clear one or naming it is odd
    targets: tuple[str, ...]  # colours it can be recoloured to
    hue: float
    saturation: float
    value: float


def base_id(hexcode: str) -> str:
    """'2764-FE0F' -> '2764': lower case, without variation selectors."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def chosen(rows: list[dict[str, Any]], groups: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """(id, label, group, subgroup) of the emojibase rows this data set uses."""
    for row in rows:
        if row.get("group") is None:
            continue
        group, subgroup = groups["groups"][str(row["group"])], groups["subgroups"][str(row["subgroup"])]
        label = plain(row["label"])
        if (subgroup in DROPPED_SUBGROUPS and label not in KEPT_SIGNS) or DROPPED_LABELS.search(label):
            continue
        yield base_id(row["hexcode"]), label, group, subgroup


def describe(id: str, style: str, label: str, group: str, subgroup: str, image: U8, mask: NDArray[np.bool_]) -> Record:
    """The record of one picture: its words, its dominant colour and what it can be recoloured to."""
    subjects = subjects_of(label, subgroup)
    dominant = dominant_colour(image, mask)
    if dominant is None:
        return Record(id, style, label, subjects, group, subgroup, "", (), 0, 0, 0)
    d = dominant
    name = colour_name(d.hue, d.saturation, d.value)
    thing = group not in ("smileys-emotion", "people-body") and subgroup not in UNNAMED_SUBGROUPS
    clear = d.share > 0.75 and d.cover > 0.5
    allowed = subgroup in RECOLOURABLE_SUBGROUPS or label in RECOLOURABLE_LABELS
    vivid = d.saturation > 0.35 and d.value > 0.5 and d.share > 0.6 and d.cover > 0.45
    targets: tuple[str, ...] = ()
    if allowed and vivid and not FIXED_LABELS.search(label):
        targets = tuple(
            t for t, goal in TARGETS.items() if t != name and abs((goal.hue - d.hue + 180) % 360 - 180) > 18
        )
    rounded = (round(d.hue, 1), round(d.saturation, 3), round(d.value, 3))
    colour = name if thing and (clear or targets) and name not in ("white", "black") else ""
    return Record(id, style, label, subjects, group, subgroup, colour, targets, *rounded)
