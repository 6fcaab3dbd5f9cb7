from __future__ import annotations

import pytest

from edgediffusion.engines.json_object import parse_object


def test_an_object() -> None:
    assert parse_object('{"a": ["\\u00e9", 1.5, null]}') == parse_object('{"a": ["é", 1.5, null]}'.encode())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Expecting property name"),
        (b"\xff", "can't decode"),
        ("[]", "got list, wanted a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ["\\ud800"]}', "surrogates not allowed"),
    ],
)
def test_what_is_none(text: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_object(text)
