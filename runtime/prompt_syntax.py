r"""Prompts as the web UIs write them: how much words weigh, and in which steps they are there.

`(word:1.3)` weighs 1.3, `(word)` 1.1 and `[word]` 1 / 1.1; brackets within brackets multiply. `[from:to:0.4]` is `from`
until 0.4 of the steps are done, and `to` afterwards; `[to:0.4]` and `[from::0.4]` have one of the two. A number without
a point counts steps. `BREAK` begins a new chunk. A backslash makes a bracket, or a backslash, an ordinary sign.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from edgediffusion.engines.errors import UsageError

EMPHASIS = 1.1
_CLOSING = {"(": ")", "[": "]"}
_LEXEME = re.compile(r"\\.|[()\[\]]|[^\\()\[\]]+|\\", re.DOTALL)
_ESCAPED = re.compile(r"\\([()\[\]\\])")
_NUMBER = re.compile(r"(?P<text>.*):\s*(?P<number>[+-]?(?:\d+\.?\d*|\.\d+))\s*", re.DOTALL)
_BREAK = re.compile(r"\s*\bBREAK\b\s*")


@dataclass(frozen=True)
class Words:
    """A part of a prompt, its brackets resolved: `weight` is a factor, 1 for plain words.

    It is there from step `start` on, and until before step `stop`.
    """

    text: str
    weight: float
    start: float = 0
    stop: float = math.inf


@dataclass(frozen=True)
class _Bracket:
    sign: str
    column: int
    nodes: list[str | _Bracket] = field(default_factory=list)


def parse(prompt: str, num_inference_steps: int) -> list[Words]:
    """The parts of `prompt`, in order; a switch at a fraction is one of `num_inference_steps`.

    Raises:
        UsageError: a bracket is not closed, or not opened, or asks for words that alternate.
    """
    return list(_flatten(_read(prompt), Words("", 1), num_inference_steps, prompt))


def at_step(words: Sequence[Words], step: int) -> list[list[tuple[str, float]]]:
    """What is there in this step: texts and their weights, in a list for each part between `BREAK`s."""
    there = (part for part in words if part.start <= step < part.stop)
    parts: list[list[tuple[str, float]]] = [[]]
    for weight, group in groupby(there, key=lambda part: part.weight):
        first, *rest = _BREAK.split("".join(part.text for part in group))
        parts[-1].append((first, weight))
        parts += ([(text, weight)] for text in rest)
    return parts


def plain(prompt: str) -> str:
    """The words that are there in the last step, without weights and `BREAK`."""
    return _BREAK.sub(" ", "".join(words.text for words in parse(prompt, 1) if words.stop == math.inf))


def switches(words: Sequence[Words]) -> set[float]:
    """The steps at which other words come in, 0 among them."""
    return {0} | {step for part in words for step in (part.start, part.stop) if step < math.inf}


def _read(prompt: str) -> list[str | _Bracket]:
    """Brackets as a tree; escapes are left as they are."""
    stack = [_Bracket("", 0)]
    for match in _LEXEME.finditer(prompt):
        nodes, lexeme = stack[-1].nodes, match[0]
        if lexeme in _CLOSING:
            stack.append(_Bracket(lexeme, match.start()))
        elif lexeme in _CLOSING.values():
            if _CLOSING.get(stack[-1].sign) != lexeme:
                raise _unbalanced(prompt, lexeme, match.start(), "opens")
            closed = stack.pop()
            stack[-1].nodes.append(closed)
        elif nodes and isinstance(nodes[-1], str):
            nodes[-1] += lexeme
        else:
            nodes.append(lexeme)
    if stack[-1].sign:
        raise _unbalanced(prompt, stack[-1].sign, stack[-1].column, "closes")
    return stack[0].nodes


def _unbalanced(prompt: str, sign: str, column: int, lacking: str) -> UsageError:
    return UsageError(
        f"prompt {prompt!r}: nothing {lacking} the {sign!r} at {column + 1}; for the sign itself write \\{sign}"
    )


def _flatten(nodes: Sequence[str | _Bracket], outer: Words, steps: int, prompt: str) -> Iterator[Words]:
    for node in nodes:
        if isinstance(node, str):
            yield Words(_ESCAPED.sub(r"\1", node), outer.weight, outer.start, outer.stop)
            continue
        inner, number = _number(node.nodes)
        if node.sign == "(":
            weight = EMPHASIS if number is None else float(number)
            yield from _flatten(inner, Words("", outer.weight * weight, outer.start, outer.stop), steps, prompt)
        elif number is not None:
            before, after = _halves(inner)
            switch = int(float(number) * steps if "." in number else int(number))
            earlier = Words("", outer.weight, outer.start, min(outer.stop, switch))
            later = Words("", outer.weight, max(outer.start, switch), outer.stop)
            yield from _flatten(before, earlier, steps, prompt)
            yield from _flatten(after, later, steps, prompt)
        else:
            if any(isinstance(text, str) and "|" in text for text in inner):
                raise UsageError(
                    f"prompt {prompt!r}: words that alternate, [a|b], are not supported; for the signs write \\[ \\]"
                )
            yield from _flatten(inner, Words("", outer.weight / EMPHASIS, outer.start, outer.stop), steps, prompt)


def _number(nodes: list[str | _Bracket]) -> tuple[list[str | _Bracket], str | None]:
    """What is before the colon and the number at the end, and the number; all, and None, where there is none."""
    match = _NUMBER.fullmatch(nodes[-1]) if nodes and isinstance(nodes[-1], str) else None
    return (nodes, None) if match is None else ([*nodes[:-1], match["text"]], match["number"])


def _halves(nodes: list[str | _Bracket]) -> tuple[list[str | _Bracket], list[str | _Bracket]]:
    """What is before the first colon, and what is behind it; with no colon everything is."""
    for i, node in enumerate(nodes):
        if isinstance(node, str) and ":" in node:
            before, after = node.split(":", 1)
            return [*nodes[:i], before], [after, *nodes[i + 1 :]]
    return [], nodes
