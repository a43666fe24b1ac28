"""The few calls in plain pickles, by name: numpy arrays, and what old protocols write as calls."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from dino.plain_pickle.limits import MOST_ROWS, MOST_SIDES, PlainPickleError, expect, shorten

KINDS = re.compile(r"b1|[iu][1248]|f[248]|c8|c16|O[48]?|[SU][0-9]{1,9}")
UNICODE_END = 0x10FFFF

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Named:
    """A global that the pickle refers to; only its name is kept."""

    name: str
    description: ClassVar[str] = "name of a function or class"


@dataclass
class Array:
    """A numpy array whose content follows in the pickle."""

    value: np.ndarray | None = None
    description: ClassVar[str] = "array without content"


@dataclass
class Dtype:
    """A numpy dtype whose byte order follows in the pickle."""

    kind: np.dtype
    description: ClassVar[str] = "dtype"


class Budget:
    """How much may still be copied, so that a file cannot unfold to more than its size."""

    def __init__(self, size: int) -> None:
        """Start with `size` bytes of array data and `size` bytes of encoded text."""
        self.left = {"arrays": size, "text": size}

    def spend(self, what: str, size: int) -> None:
        """Deduct `size` bytes."""
        self.left[what] -= size
        if self.left[what] < 0:
            raise PlainPickleError("it repeats its content to more bytes than the file has")


def build_array(dtype: Any, raw: Any, shape: Any, order: str, budget: Budget) -> np.ndarray:
    """Build an array after checking its claims against its content, before any allocation."""
    numpy_type, sides = expect(dtype, Dtype).kind, _expect_shape(shape)
    has_objects = numpy_type.hasobject
    content = expect(raw, list) if has_objects else _expect_bytes(raw)
    size = math.prod(sides) * (1 if has_objects else numpy_type.itemsize)
    claim = f"an array in it claims the shape {shorten(str(sides))}"
    if size != len(content):
        raise PlainPickleError(f"{claim} of {numpy_type}, but has {len(content)} bytes")
    if not size and math.prod(side or 1 for side in sides) > MOST_ROWS:
        raise PlainPickleError(f"{claim}, but has no content")
    budget.spend("arrays", size)
    layout: Literal["F", "C"] = "F" if order == "F" else "C"
    if has_objects:
        return _build_objects(list(content), sides, layout)
    data = bytearray(content.encode("latin1") if isinstance(content, str) else content)
    if numpy_type.kind == "U" and size:
        if np.frombuffer(data, f"{numpy_type.byteorder}u4").max() > UNICODE_END:
            raise PlainPickleError("an array in it holds text that is not Unicode")
    array: np.ndarray = np.ndarray(sides, numpy_type, data, order=layout)
    return array


def _build_objects(values: list[Any], sides: tuple[int, ...], order: Any) -> np.ndarray:
    flat = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):  # a single assignment would unpack lists
        flat[index] = value
    # Values are listed in C order, whatever the memory order.
    return np.asarray(flat.reshape(sides), order=order)


def _expect_bytes(raw: Any) -> bytes | bytearray | str:
    """Accept bytes, protocol 5's bytearray, or Python 2's byte string, which was read as text."""
    return raw if isinstance(raw, bytearray | str) else expect(raw, bytes)


def _expect_shape(value: Any) -> tuple[int, ...]:
    sides: tuple[int, ...] = expect(value, tuple)
    if len(sides) > MOST_SIDES or any(expect(side, int) < 0 for side in sides):
        raise PlainPickleError("an array in it claims a shape that is impossible")
    return sides


def set_state(target: Any, state: Any, budget: Budget) -> Any:
    """Set an array's content or a dtype's byte order.

    Returns:
        The object that replaces `target`.
    """
    expect(state, tuple)
    if isinstance(target, Array) and target.value is None:
        _, shape, dtype, is_fortran, raw = state
        target.value = build_array(dtype, raw, shape, "F" if is_fortran else "C", budget)
        return target.value
    # The parts 2 to 4 describe sub-arrays and fields.
    simple = isinstance(target, Dtype) and all(part is None for part in state[2:5])
    if not simple or expect(state[1], str) not in {"<", ">", "|"}:
        raise PlainPickleError("an object in it has a state that cannot be read")
    target.kind = target.kind.newbyteorder(state[1])
    return target


def look_up(name: str) -> Named:
    """Resolve a name if plain pickles may contain it."""
    if name not in CALLS and name != "numpy.ndarray":
        raise PlainPickleError(
            f"it holds the pickled object {shorten(name)},"
            " but only lists, numbers, texts and arrays are read"
        )
    return Named(name)


def call(name: str, arguments: Arguments, budget: Budget) -> Any:
    """Emulate a call of `name` without using the object of that name."""
    if name not in CALLS:
        raise PlainPickleError(f"it calls {name}")
    return CALLS[name](arguments, budget)


def _start_array(arguments: Arguments, _: Budget) -> Array:
    if expect(arguments[0], Named).name != "numpy.ndarray":
        raise PlainPickleError("it has an array of a class other than numpy.ndarray")
    return Array()


def _start_dtype(arguments: Arguments, _: Budget) -> Dtype:
    if not KINDS.fullmatch(expect(arguments[0], str)):
        raise PlainPickleError(
            f"it has an array of dtype {shorten(arguments[0])!r},"
            " but only numbers and texts are read"
        )
    return Dtype(np.dtype(arguments[0]))


def _build_scalar(arguments: Arguments, budget: Budget) -> Any:
    dtype, raw = arguments
    if expect(dtype, Dtype).kind.hasobject:
        raise PlainPickleError("it has a numpy scalar that is an object")
    return build_array(dtype, raw, (), "C", budget)[()]


def _build_from_buffer(arguments: Arguments, budget: Budget) -> np.ndarray:
    """Protocol 5. In order K, `axes` permutes the axes that the buffer has in C order."""
    raw, dtype, shape, order, *axes = arguments
    if expect(dtype, Dtype).kind.hasobject or expect(order, str) not in {"C", "F", "K", "A"}:
        raise PlainPickleError("it has an array with a buffer that cannot be read")
    array = build_array(dtype, raw, shape, order, budget)
    if order == "K" and axes and axes[0] is not None:
        turned: np.ndarray = array.transpose([expect(axis, int) for axis in expect(axes[0], tuple)])
        return turned
    return array


def _start_dict(arguments: Arguments, _: Budget) -> dict[Any, Any]:
    if arguments:
        raise PlainPickleError(
            "it has an ordered dictionary with content where an empty one belongs"
        )
    return {}


def _start_bytes(arguments: Arguments, _: Budget) -> bytes:
    if arguments:
        raise PlainPickleError("it calls bytes with arguments")
    return b""


def _encode(arguments: Arguments, budget: Budget) -> bytes:
    """Decode bytes as protocols 0 to 2 write them."""
    text, encoding = arguments
    if expect(encoding, str) not in {"latin1", "latin-1"}:
        raise PlainPickleError(
            f"it has bytes in the encoding {shorten(encoding)!r} where latin1 belongs"
        )
    checked: str = expect(text, str)
    budget.spend("text", len(checked))
    return checked.encode("latin1")


# Module names differ between numpy 1 and 2, and between Python 2 and 3.
CALLS: Mapping[str, Callable[[Arguments, Budget], Any]] = {
    **dict.fromkeys(
        (f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")), _start_array
    ),
    **dict.fromkeys(
        (f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")), _build_scalar
    ),
    **dict.fromkeys(
        (f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")), _build_from_buffer
    ),
    "numpy.dtype": _start_dtype,
    "collections.OrderedDict": _start_dict,
    **dict.fromkeys(
        ("builtins.tuple", "__builtin__.tuple"), lambda arguments, _: expect(arguments[0], tuple)
    ),
    **dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), _start_bytes),
    "_codecs.encode": _encode,
}
