"""Files of Paddle (`.pdparams`), read without Paddle and without unpickling: a dictionary of names to arrays.

`paddle.save` writes one plain pickle of numpy arrays. Its opcodes are only listed here (`pickletools`), never run: a
small stack machine knows those that such files have, and of the objects that a pickle can call for it knows the few
below, each with a stand-in of ours. Everything else is refused, so nothing in a file can make anything happen.
"""

from __future__ import annotations

import math
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino.errors import CheckpointError

NAME_TABLE = "StructuredToParameterName@@"  # Paddle's internal names; nothing needs them
SLICES = "UnpackBigParamInfor@@"  # how tensors over 1 GiB were cut (pickle protocols 2 and 3)
MOST_SIDES = 32  # of an array; numpy 1 has no more
DTYPES = {"f2", "f4", "f8", "u1", "u2", "i1", "i2", "i4", "i8", "b1"}

Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Named:
    """An object that a pickle calls for, by its name alone."""

    name: str


@dataclass
class Array:
    """The stand-in for a numpy array: empty until its state comes."""

    value: np.ndarray | None = None


@dataclass
class Dtype:
    """The stand-in for a numpy dtype."""

    kind: str


class Machine:
    """A stack machine for the opcodes of `.pdparams` files."""

    def __init__(self, data: bytes) -> None:
        """Remember the file; no more bytes of text or of arrays can come out of it than are in it."""
        self.data = data
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.left = {"text": len(data), "arrays": len(data)}

    def run(self) -> Any:
        """Go through the opcodes; gives what the pickle holds.

        Raises:
            ValueError: An opcode, object or array that such files do not have.
            IndexError, KeyError, TypeError, AttributeError, struct.error: The pickle is none.
        """
        for opcode, argument, _ in pickletools.genops(self.data):
            if opcode.name == "STOP":
                return self.stack.pop()
            self._do(opcode.name, argument)
        raise ValueError("it has no end")

    def _do(self, name: str, argument: Any) -> None:
        if name in PLAIN:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name]())
        elif name in ACTIONS:
            ACTIONS[name](self, argument)
        elif name not in {"PROTO", "FRAME"}:
            raise ValueError(f"it uses the opcode {name}, which no file of weights has")

    def mark(self, _: Any) -> None:
        """Remember where a tuple or a group of items begins."""
        self.marks.append(len(self.stack))

    def memorise(self, place: int | None) -> None:
        """Give the top of the stack a number."""
        self.memo[len(self.memo) if place is None else place] = self.stack[-1]

    def recall(self, place: int) -> None:
        """Push what has this number."""
        self.stack.append(self.memo[place])

    def join(self, count: int | None) -> None:
        """Make a tuple of the last `count` values, or of those since the mark."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        self.stack[start:] = [tuple(self.stack[start:])]

    def fill_list(self, count: int | None) -> None:
        """Append the last value, or those since the mark, to the list below."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        _expect(self.stack[-1], list).extend(values)

    def fill_dict(self, count: int | None) -> None:
        """Put the last pair, or those since the mark, into the dictionary below."""
        start = self.marks.pop() if count is None else len(self.stack) - count
        values = self.stack[start:]
        del self.stack[start:]
        pairs = zip(values[::2], values[1::2], strict=True)
        _expect(self.stack[-1], dict).update((_expect(key, str), value) for key, value in pairs)

    def name_object(self, words: str | None) -> None:
        """Push the name of an object, if it is one of those that are known."""
        if words is None:
            last = _expect(self.stack.pop(), str)
            words = f"{_expect(self.stack.pop(), str)} {last}"
        name = words.replace(" ", ".")
        if name not in CALLS and name != "numpy.ndarray":
            raise ValueError(f"it calls for {name}, and only arrays and plain values are read")
        self.stack.append(Named(name))

    def call(self, _: Any) -> None:
        """Replace an object's name and its arguments by our stand-in."""
        arguments = _expect(self.stack.pop(), tuple)
        called = _expect(self.stack.pop(), Named)
        if called.name not in CALLS:
            raise ValueError(f"it calls {called.name}")
        self.stack.append(CALLS[called.name](self, arguments))

    def build(self, _: Any) -> None:
        """Give an array its content; a dtype's state says only what is known already."""
        state, target = _expect(self.stack.pop(), tuple), self.stack[-1]
        if isinstance(target, Array):
            _, shape, dtype, fortran, raw = state
            target.value = self.make_array(dtype, raw, shape, order="F" if fortran else "C")
        elif not isinstance(target, Dtype) or _expect(state[1], str) not in {"<", "|"}:
            raise ValueError("an object in it has a state that cannot be read")

    def make_array(self, dtype: Dtype, raw: bytes, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
        """Bytes as an array, after its claims about them are checked."""
        kind, raw = np.dtype(_expect(dtype, Dtype).kind), _expect(raw, bytes)
        if math.prod(_expect_shape(shape)) * kind.itemsize != len(raw):
            raise ValueError(f"an array in it claims the shape {shape} of {kind}, and has {len(raw)} bytes")
        self.spend("arrays", len(raw))
        flat = np.frombuffer(bytearray(raw), dtype=kind)  # its own memory, which may be written to
        return flat.reshape(shape, order="F" if order == "F" else "C")

    def spend(self, what: str, size: int) -> None:
        """Refuse a file that would unfold to more than it is long."""
        self.left[what] -= size
        if self.left[what] < 0:
            raise ValueError("it repeats its content to more than the file holds")


def _expect(value: Any, kind: type) -> Any:
    """Before a value from the file is hashed, compared or printed: its depth could end the process, or never end."""
    if type(value) is not kind:
        raise ValueError(f"it has a {type(value).__name__} where a {kind.__name__} belongs")
    return value


def _expect_shape(value: Any) -> tuple[int, ...]:
    sides: tuple[int, ...] = _expect(value, tuple)
    if len(sides) > MOST_SIDES or any(_expect(side, int) < 0 for side in sides):
        raise ValueError("an array in it claims a shape that none can have")
    return sides


def _start_array(_: Machine, arguments: Arguments) -> Array:
    if arguments[0] != Named("numpy.ndarray"):
        raise ValueError("it makes an array of another kind than numpy's")
    return Array()


def _start_dtype(_: Machine, arguments: Arguments) -> Dtype:
    if _expect(arguments[0], str) not in DTYPES:
        raise ValueError(f"it has an array of dtype {arguments[0]!r}")
    return Dtype(arguments[0])


def _start_dict(_: Machine, arguments: Arguments) -> dict[Any, Any]:
    if arguments:
        raise ValueError("it makes an ordered dictionary of something")
    return {}


def _encode(machine: Machine, arguments: Arguments) -> bytes:
    text: str = _expect(arguments[0], str)
    machine.spend("text", len(text))
    return text.encode("latin1")  # how protocol 2 writes bytes


def _make_scalar(machine: Machine, arguments: Arguments) -> Array:
    return Array(machine.make_array(arguments[0], arguments[1], ()))


PLAIN = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
ACTIONS: Mapping[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine.mark,
    **dict.fromkeys(("MEMOIZE", "BINPUT", "LONG_BINPUT"), Machine.memorise),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), Machine.recall),
    "TUPLE": Machine.join,
    "TUPLE1": lambda machine, _: machine.join(1),
    "TUPLE2": lambda machine, _: machine.join(2),
    "TUPLE3": lambda machine, _: machine.join(3),
    "APPEND": lambda machine, _: machine.fill_list(1),
    "APPENDS": Machine.fill_list,
    "SETITEM": lambda machine, _: machine.fill_dict(2),
    "SETITEMS": Machine.fill_dict,
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), Machine.name_object),
    "REDUCE": Machine.call,
    "BUILD": Machine.build,
}
# numpy 1 and 2 have another name for the same; protocol 2 has Python 2's for tuple.
CALLS: Mapping[str, Callable[[Machine, Arguments], Any]] = {
    **dict.fromkeys((f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")), _start_array),
    **dict.fromkeys((f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")), _make_scalar),
    "numpy.dtype": _start_dtype,
    "collections.OrderedDict": _start_dict,
    **dict.fromkeys(("builtins.tuple", "__builtin__.tuple"), lambda _, arguments: arguments[0]),
    "_codecs.encode": _encode,
}
BROKEN = (ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError, struct.error)


def read_paddle(path: Path) -> dict[str, Any]:
    """Read a `.pdparams` file that is a pickle.

    Returns:
        Names to tensors, in the dictionary or in one of its dictionaries, and plain values. Numbers of
        bfloat16, which Paddle stores as uint16, have their own dtype.

    Raises:
        CheckpointError: The file is missing or damaged, or holds anything but arrays and plain values.
    """
    try:
        content = Machine(path.read_bytes()).run()
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}, and a dictionary of arrays is wanted")
        return _translate(content)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    except BROKEN as error:
        raise CheckpointError(f"{path} is damaged or no file of Paddle's weights: {error}") from error


def _translate(content: Mapping[Any, Any]) -> dict[str, Any]:
    """Arrays to tensors; a network may lie one dictionary deeper."""
    found = {name: _unwrap(value) for name, value in content.items() if name not in {NAME_TABLE, SLICES}}
    for name, cut in content.get(SLICES, {}).items():
        pieces = [found.pop(_expect(piece, str)).value for piece in cut["slices"]]
        found[name] = Array(np.concatenate(pieces).reshape(_expect_shape(tuple(cut["OriginShape"]))))
    return {name: _translate_value(name, value) for name, value in found.items()}


def _translate_value(name: str, value: Any) -> Any:
    if isinstance(value, Array):
        return _to_tensor(name, value)
    if isinstance(value, dict):  # one level only: a hostile file may hold itself
        inner = {part: _unwrap(content) for part, content in value.items()}
        return {part: _to_tensor(part, one) if isinstance(one, Array) else one for part, one in inner.items()}
    return value


def _unwrap(value: Any) -> Any:
    """A tensor that was saved within another object is a pair of its name and array."""
    pair = isinstance(value, tuple) and len(value) == 2
    return value[1] if pair and isinstance(value[1], Array) else value


def _to_tensor(name: str, array: Array) -> Tensor:
    if array.value is None:
        raise ValueError(f"the array {name} has no content")
    if array.value.dtype == np.uint16:
        return torch.from_numpy(array.value.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array.value)
