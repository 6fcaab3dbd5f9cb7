"""Whether what JSON gave for a dataclass is of the types that it says."""

from __future__ import annotations

import dataclasses
import functools
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_types(value: Any, name: str) -> None:
    """See that the fields of the dataclass `value` are of their types, all the way down; a whole number is a float too.

    Raises:
        TypeError: one is not.
    """
    kind: Any = type(value)
    for field, hint in _hints(kind).items():
        if not fits(getattr(value, field), hint, f"{name}.{field}"):
            raise TypeError(f"{name}.{field} is {getattr(value, field)!r:.60}")


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def fits(value: object, hint: Any, name: str) -> bool:
    """Whether `value` is of the type `hint`: of unions, sequences and mappings of plain types, or a dataclass.

    Raises:
        TypeError: see `check_types`, for a dataclass; it calls the value `name`.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(fits(value, option, name) for option in arguments)
    if origin is tuple and Ellipsis not in arguments:
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(arguments)
            and all(fits(part, argument, name) for part, argument in zip(value, arguments, strict=True))
        )
    if origin in (tuple, Sequence):
        return isinstance(value, (tuple, list)) and all(fits(part, arguments[0], name) for part in value)
    if origin in (dict, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, arguments[0], name) and fits(part, arguments[1], f"{name}.{key}") for key, part in value.items()
        )
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    if hint is int and isinstance(value, bool):
        return False
    if not isinstance(value, hint):
        return False
    if dataclasses.is_dataclass(value):
        check_types(value, name)
    return True
