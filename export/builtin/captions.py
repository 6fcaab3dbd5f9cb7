"""Words of the pictures: what a subject is called, its article, and the captions that a user may type.

`names.txt` beside this module holds the hand-made names, a line each: `label = subjects`, most literal first. A label
that is not there is its own only subject.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

NAMES = Path(__file__).with_name("names.txt")


def word_set(text: str, separator: str | None = None) -> frozenset[str]:
    """The words of `text`, or its parts between separators."""
    return frozenset(text.split(separator))


COLOUR_WORDS = word_set("red orange yellow green blue purple pink brown black white grey")

PEOPLE_PHRASES = (
    (r"getting (massage|haircut)", r"getting a \1"),
    (r"rowing boat", "rowing a boat"),
    (r"bouncing ball", "bouncing a ball"),
    (r"mountain biking", "riding a mountain bike"),
    (r"biking", "riding a bike"),
    (r"in lotus position", "meditating"),
    (r"raising hand", "raising a hand"),
    (r"gesturing no", "saying no"),
    (r"gesturing ok", "making an ok sign"),
    (r"in steamy room", "in a steam room"),
    (r"taking bath", "taking a bath"),
    (r"feeding baby", "feeding a baby"),
    (r"in manual wheelchair", "in a wheelchair"),
    (r"(wearing|with|in) (turban|skullcap|headscarf|white cane|motorized wheelchair|tuxedo|veil|crown)$", r"\1 a \2"),
)
MASS = word_set(
    "bread cheese popcorn bacon broccoli garlic rice spaghetti sushi butter salt fire water wood corn candy ice "
    "beer sake mate toast honey coral money luggage lettuce lavender wheat chocolate ginger tempura poop soap "
    "curry oden fog lightning underwear yarn sleeping"
)
SINGULAR_S = word_set(
    "bus minibus trolleybus glass cactus octopus compass dress cross lotus virus hibiscus hippopotamus tyrannosaurus "
    "claus fleur-de-lis tennis class abacus canvas mantis iris rhinoceros"
)
PLURAL = word_set("people men women children feet teeth lips fries leaves scissors dice bricks")
NO_ARTICLE = word_set(
    "santa claus|santa|mrs. claus|mx claus|mount fuji|saturn|planet earth|letters zzz|thumbs up|thumbs down|"
    "half a coconut|half an avocado|number 100|letter x|flying money|money with wings|noodle soup|toilet paper|"
    "curry with rice|mate",
    "|",
)
PERSONS = word_set("person man woman boy girl child baby couple face")
PREPOSITION_WORDS = word_set("with of in on over at and")
THE = frozenset({"statue of liberty", "milky way", "kaaba", "earth"})
AN_EXCEPTIONS = ("unicorn", "uniform", "ewe", "one-", "ufo", "euro", "u-")
PREPOSITIONS = re.compile(
    r" (?:with|of|in|on|over|at|behind|without|and|covering|seen|under|from|to|pointing|pouring|blowing|sticking|"
    r"licking|holding|taking|going|for) "
)


def plain(text: str) -> str:
    """Lower-case ASCII: accents and typographic quotes go."""
    text = text.replace("\u2019", "'").replace("\u201c", "").replace("\u201d", "")
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()


@lru_cache(maxsize=1)
def names() -> Mapping[str, tuple[str, ...]]:
    """The table in `names.txt`: label -> subjects."""
    rows = (line.partition(" = ") for line in NAMES.read_text(encoding="utf-8").splitlines())
    return {label: tuple(s.strip() for s in subjects.split(",")) for label, _, subjects in rows}


def subjects_of(label: str, subgroup: str) -> tuple[str, ...]:
    """Noun phrases for an emojibase label, most literal first."""
    name = plain(label)
    if match := re.fullmatch(r"(\w+): (beard|bald|(?:red|curly|white|blond) hair)", name):
        who, what = match.groups()
        return (f"bald {who}",) if what == "bald" else (f"{who} with {'a beard' if what == 'beard' else what}",)
    if name.endswith(" o'clock"):
        return (f"clock showing {name}", "clock")
    known = names().get(name)
    if known is not None:
        return known
    match = re.match(r"(man|woman) (.+)", name)
    if (
        match
        and subgroup in ("person-role", "person-fantasy")
        and not match[2].startswith(("in ", "with ", "wear", "feed"))
    ):
        adjective = {"man": "male", "woman": "female"}[match[1]]
        plainer = names().get(match[2], (match[2],))[0]
        return tuple(dict.fromkeys([f"{adjective} {plainer}", f"{match[1]} {plainer}", f"{adjective} {match[2]}"]))
    for pattern, better in PEOPLE_PHRASES:
        if subgroup.startswith("person"):
            name = re.sub(pattern, better, name)
    return (re.sub(r" button$", "", name),)


def article(subject: str) -> str:
    """'an ' or 'a ' or 'the ' or, before plurals, masses and names, ''."""
    if subject in THE:
        return "the "
    head = PREPOSITIONS.split(subject)[0]
    first, last = head.split()[0], head.split()[-1]
    if first in PERSONS:
        return "a "
    if subject in NO_ARTICLE or last in MASS or last in PLURAL or first in PLURAL or first == "two":
        return ""
    if last.endswith("s") and not last.endswith(("ss", "'s")) and last not in SINGULAR_S:
        return ""
    if first.startswith(AN_EXCEPTIONS):
        return "a "
    return "an " if first[0] in "aeiou8" or first in ("x-ray", "hour", "hourglass", "suv") else "a "


def strip_colour(subject: str) -> str:
    """'red apple' -> 'apple', 'light blue heart' -> 'heart'; a subject that is only a colour stays."""
    words = subject.split()
    bare = words[1:] if words[0] == "light" and len(words) > 2 and words[1] in COLOUR_WORDS else words
    if bare[0] in COLOUR_WORDS and len(bare) > 1 and bare[1] not in PREPOSITION_WORDS and bare[1] != "fruit":
        bare = bare[1:]
    return " ".join(bare)


def _phrases(subject: str, style: str) -> list[str]:
    full = article(subject) + subject
    return list(dict.fromkeys([f"{full}, {style}", full, f"{subject}, {style}"]))


def captions(subjects: tuple[str, ...], colour: str, style: str) -> list[str]:
    """What a user may type to get a picture of `colour` ('' where it has no name), lower case, most literal first."""
    out: list[str] = []
    for subject in subjects:
        out += _phrases(subject, style)
        bare = strip_colour(subject)
        if bare != subject:
            out += _phrases(bare, style)
        elif colour and not COLOUR_WORDS & set(subject.split()):
            out += _phrases(f"{colour} {subject}", style)
    return list(dict.fromkeys(out))


def recoloured_captions(subjects: tuple[str, ...], colour: str, style: str) -> list[str]:
    """The captions of a recolouring: every one carries the new colour and none the picture's own."""
    out: list[str] = []
    for bare in map(strip_colour, subjects):
        if not COLOUR_WORDS & set(bare.split()):
            out += _phrases(f"{colour} {bare}", style)
    return list(dict.fromkeys(out))
