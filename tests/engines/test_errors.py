from __future__ import annotations

import pickle

from edgediffusion.engines.errors import UsageError


def test_a_message_is_one_line() -> None:
    error = UsageError("two\nlines.png: cannot be read")
    assert str(error) == "two lines.png: cannot be read"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
