"""The value of a flag: from the text of a command line, or from YAML, to the type its field declares."""

from __future__ import annotations

import types
import typing
from typing import Any

TRUE = ("1", "true", "on", "yes")
FALSE = ("0", "false", "off", "no")


def convert(value: Any, annotation: Any) -> Any:
    """Give `value` the type that `annotation` means: bool, int, float, str, a tuple of these, each `| None` or not.

    Raises:
        TypeError: It is of another kind.
        ValueError: It does not read as one.
    """
    wanted = required(annotation)
    if value is None and wanted is not annotation:
        return None
    if typing.get_origin(wanted) is tuple:
        return _convert_tuple(value, typing.get_args(wanted))
    if wanted is bool:
        return _convert_bool(value)
    if (
        value is None
        or isinstance(value, bool | list | dict)
        or (wanted is int and isinstance(value, float))
    ):
        raise ValueError(value)
    return wanted(value)


def required(annotation: Any) -> Any:
    """`X` of `X | None`, else the annotation itself."""
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def takes_many(annotation: Any) -> bool:
    """Whether a value is several words."""
    return typing.get_origin(required(annotation)) is tuple


def describe(annotation: Any) -> str:
    """What a value must be, in words."""
    wanted = required(annotation)
    if typing.get_origin(wanted) is tuple:
        parts = typing.get_args(wanted)
        return (
            f"{'one or more' if parts[-1] is Ellipsis else len(parts)} {parts[0].__name__} values"
        )
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[wanted]


def _convert_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or (
        parts[-1] is not Ellipsis and len(value) != len(parts)
    ):
        raise ValueError(value)
    return tuple(convert(item, parts[0]) for item in value)


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in {*TRUE, *FALSE}:
        return word in TRUE
    raise ValueError(value)
