"""What a plain pickle may hold, and how much of it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

MOST_LEVELS = 100  # of containers in one another; none may hold itself
MOST_VALUES = 10_000_000  # in the result, a shared value counted wherever it occurs; larger files: one for each byte
MOST_ROWS = 2**20  # of an array without content, which may claim any shape
MOST_SIDES = 32  # of an array; numpy 1 has no more
MOST_INT = 1024  # bytes of an integer
MOST_DIGITS = 2500  # of a number written as text, since int() takes quadratic time
MOST_KEY = 100  # values in a tuple that is a dictionary's key

ATOMS = {type(None), bool, int, float, str, bytes}
DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
)  # raised by damaged pickles


class PlainPickleError(ValueError):
    """The bytes are not a whole pickle, or hold more than plain values."""


def expect(value: Any, kind: type) -> Any:
    """Check a type before a value is hashed, compared or printed, which may overflow the stack or never end."""
    if type(value) is not kind:
        raise PlainPickleError(f"it has a {_name_type(value)} where a {_name_kind(kind)} belongs")
    return value


def shorten(text: str) -> str:
    """Text from a file for a message of one line."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:80]) + (
        "..." if len(text) > 80 else ""
    )


def check_int(value: int) -> int:
    """Refuse integers whose arithmetic takes long."""
    if value.bit_length() > 8 * MOST_INT:
        raise PlainPickleError(f"it has an integer of more than {MOST_INT} bytes")
    return value


def check_key(key: Any) -> None:
    """Refuse keys that cannot be hashed safely: tuples are hashed recursively, shared parts again each time."""
    parts = [key]
    for part in parts:  # grows during the loop
        if type(part) is tuple:
            parts.extend(part[:MOST_KEY])
            if len(parts) > MOST_KEY:
                raise PlainPickleError(
                    f"it has a tuple of {MOST_KEY} values or more where a key belongs"
                )
        elif not _is_atom(part):
            raise PlainPickleError(f"it has a {_name_type(part)} where a key belongs")


def check_result(root: Any, size: int) -> None:
    """Refuse a result that holds a stand-in or itself, or is too large when shared values are written out.

    Args:
        root: The result.
        size: Bytes of the file.
    """
    most = max(size, MOST_VALUES)
    finished: dict[int, tuple[int, int]] = {}  # by container: values in it, levels of containers
    opened: set[int] = set()
    path = [root] if _is_container(root) else []
    while path:
        value = path[-1]
        if id(value) in finished:
            path.pop()
            continue
        inner = [part for part in _list_parts(value) if _is_container(part)]
        if id(value) not in opened:
            opened.add(id(value))
            waiting = [part for part in inner if id(part) not in finished]
            if any(id(part) in opened for part in waiting):
                raise PlainPickleError("a container in it holds itself")
            path.extend(waiting)
            continue
        finished[id(value)] = values, levels = _add_up(
            _count(value), [finished[id(part)] for part in inner]
        )
        if values > most or levels > MOST_LEVELS:
            raise PlainPickleError(
                f"it nests more than {MOST_LEVELS} levels deep, or repeats more than {most} values"
            )


def _add_up(own: int, inner: list[tuple[int, int]]) -> tuple[int, int]:
    return own + sum(values for values, _ in inner), 1 + max(
        (levels for _, levels in inner), default=0
    )


def _is_atom(value: Any) -> bool:
    return type(value) in ATOMS or isinstance(value, np.generic)


def _is_container(value: Any) -> bool:
    if _is_atom(value):
        return False
    if isinstance(value, np.ndarray):
        return bool(value.dtype.hasobject)
    if type(value) not in {list, tuple, dict}:
        raise PlainPickleError(f"it holds a {_name_type(value)} where a plain value belongs")
    return True


def _name_type(value: Any) -> str:
    return _name_kind(type(value))


def _name_kind(kind: type) -> str:
    """In words, for stand-ins."""
    return getattr(kind, "description", kind.__name__)


def _list_parts(container: Any) -> Iterable[Any]:
    """Values only: keys were checked when they were put in."""
    if isinstance(container, np.ndarray):
        return container.flat
    return container.values() if isinstance(container, dict) else container


def _count(container: Any) -> int:
    return container.size if isinstance(container, np.ndarray) else len(container)
