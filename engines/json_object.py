"""JSON of others: an object, or a ValueError."""

from __future__ import annotations

import json
from typing import Any


def parse_object(text: str | bytes) -> dict[str, Any]:
    """The object in a JSON text.

    Raises:
        ValueError: there is none, it is nested too deeply, or a string in it has half of a character's two escapes.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"got {type(value).__name__}, wanted a JSON object")
    json.dumps(value, ensure_ascii=False).encode()
    return value
