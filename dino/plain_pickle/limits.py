"""What a plain pickle may contain, and how much of it."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

import numpy as np

MOST_LEVELS = 100  # of nested containers; none may contain itself
# In the result, counting shared values at each occurrence; for larger files, one per byte.
MOST_VALUES = 10_000_000
MOST_ROWS = 2**20  # of an array without content, which may claim any shape
MOST_SIDES = 32  # dimensions of an array, as in numpy 1
MOST_INT = 1024  # bytes of an integer
MOST_DIGITS = 2500  # of a number written as text, because int() takes quadratic time
MOST_KEY = 100  # values in a tuple used as a dictionary key

ATOMS = {type(None), bool, int, float, str, bytes}
# Raised by damaged pickles.
DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error)


class PlainPickleError(ValueError):
    """The bytes are not a complete pickle, or hold more than plain values."""


def expect(value: Any, kind: type) -> Any:
    """Check a type before hashing, comparing or printing, which may overflow the stack or hang."""
    if type(value) is not kind:
        raise PlainPickleError(f"it has a {_name_type(value)} where a {_name_kind(kind)} belongs")
    return value


def shorten(text: str) -> str:
    """Shorten and sanitize text from a file for a one-line message."""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:80]) + (
        "..." if len(text) > 80 else ""
    )


def check_int(value: int) -> int:
    """Reject integers whose arithmetic is slow."""
    if value.bit_length() > 8 * MOST_INT:
        raise PlainPickleError(f"it has an integer of more than {MOST_INT} bytes")
    return value


def check_key(key: Any) -> None:
    """Reject keys that are unsafe to hash: hashing a tuple recurses and revisits shared parts."""
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
    """Reject a result that contains a placeholder or itself, or that is too large when unfolded.

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
    values = own + sum(count for count, _ in inner)
    levels = 1 + max((depth for _, depth in inner), default=0)
    return values, levels


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
    """A readable name, also for placeholders."""
    return getattr(kind, "description", kind.__name__)


def _list_parts(container: Any) -> Iterable[Any]:
    """Values only; keys were checked when they were inserted."""
    if isinstance(container, np.ndarray):
        return container.flat
    return container.values() if isinstance(container, dict) else container


def _count(container: Any) -> int:
    return container.size if isinstance(container, np.ndarray) else len(container)
