"""Converts the value of a flag, from command-line text or YAML, to the type its field declares."""

from __future__ import annotations

import itertools
import typing
from typing import Any

from dino.config import expand_home, required, words_of

TRUE = ("1", "true", "on", "yes")
FALSE = ("0", "false", "off", "no")


def convert(value: Any, annotation: Any) -> Any:
    """Convert `value` to the annotated type: bool, int, float, str or a tuple of these, or None.

    Raises:
        TypeError: The value has another type.
        ValueError: The value cannot be parsed.
    """
    target = required(annotation)
    if value is None and type(None) in typing.get_args(annotation):
        return None
    word = value[0] if isinstance(value, list) and len(value) == 1 else value
    if isinstance(word, str) and word in words_of(annotation):
        return word
    if typing.get_origin(target) is tuple:
        return _convert_tuple(value, typing.get_args(target))
    if target is bool:
        return _convert_bool(value)
    is_wrong_type = value is None or isinstance(value, bool | list | dict)
    if is_wrong_type or (target is int and isinstance(value, float)):
        raise ValueError(value)
    return expand_home(str(value)) if target is str else target(value)


def takes_many(annotation: Any) -> bool:
    """Whether a value consists of several words."""
    return typing.get_origin(required(annotation)) is tuple


def describe(annotation: Any) -> str:
    """Describe in words what a value must be."""
    target = required(annotation)
    if typing.get_origin(target) is tuple:
        items = typing.get_args(target)
        count = "one or more" if items[-1] is Ellipsis else len(items)
        words = "".join(f" or {word}" for word in words_of(annotation))
        return f"{count} {items[0].__name__} values{words}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[target]


def _convert_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    if parts[0] in (int, float):
        value = _split_at_commas(value)
    elif isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple) or (
        parts[-1] is not Ellipsis and len(value) != len(parts)
    ):
        raise ValueError(value)
    return tuple(convert(item, parts[0]) for item in value)


def _split_at_commas(value: Any) -> Any:
    """Write "0,255" or ["0,255"] as ["0", "255"]."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple):
        return value
    parts = (word.split(",") if isinstance(word, str) else [word] for word in words)
    return list(itertools.chain.from_iterable(parts))


def _convert_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in {*TRUE, *FALSE}:
        return word in TRUE
    raise ValueError(value)
