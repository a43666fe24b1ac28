"""The stack machine that executes a plain pickle's opcodes; see `pickletools` for each of them."""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
from collections.abc import Callable, Mapping
from typing import Any

from dino.plain_pickle.arrays import Array, Budget, Named, call, look_up, set_state
from dino.plain_pickle.limits import MOST_DIGITS, PlainPickleError, check_int, check_key, expect

NEWEST = 5  # protocol
ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.?)", re.DOTALL)
ESCAPED = {b"\\": b"\\", b"'": b"'", b'"': b'"', b"n": b"\n", b"r": b"\r", b"t": b"\t"}


class Machine:
    """Reads one pickle from its first byte to the opcode STOP."""

    def __init__(self, data: bytes) -> None:
        """Start before the first byte of `data`."""
        self.data, self.place = data, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # stacks set aside by marks
        self.memo: dict[int, Any] = {}
        self.budget = Budget(len(data))

    def run(self) -> Any:
        """Execute the pickle; the result may contain placeholders, itself, and any depth.

        Raises:
            PlainPickleError: It has an opcode, object or array that plain pickles do not have.
            ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error: The pickle is
                damaged.
        """
        while (code := self.take(1)) != pickle.STOP:
            if code in PUSHES:
                value = PUSHES[code](self)  # may replace the current stack
                self.stack.append(value)
            elif code in CHANGES:
                CHANGES[code](self)
            else:
                codes = {opcode.code: opcode.name for opcode in pickletools.opcodes}
                name = codes.get(code.decode("latin1"), repr(code))
                raise PlainPickleError(f"it uses the opcode {name}, which plain values do not need")
        return self.pop(1)[0]

    def take(self, count: int) -> bytes:
        """Consume the next `count` bytes."""
        start, self.place = self.place, self.place + count
        if self.place > len(self.data):
            raise PlainPickleError(
                f"it is damaged: it has {len(self.data)} bytes, but needs {self.place}"
            )
        return self.data[start : self.place]

    def take_number(self, form: str) -> Any:
        """Consume a number in a `struct` format."""
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def take_counted(self, form: str) -> bytes:
        """Consume bytes preceded by their count."""
        return self.take(self.take_number(form))

    def take_line(self) -> bytes:
        """Consume the bytes up to the next line break, which is dropped."""
        end = self.data.find(b"\n", self.place)
        if end < 0:
            raise PlainPickleError(f"it is damaged near byte {self.place}: a line has no end")
        return self.take(end + 1 - self.place)[:-1]

    def take_digits(self) -> bytes:
        """Consume a line that is a number."""
        line = self.take_line()
        if len(line) > MOST_DIGITS:
            raise PlainPickleError(f"it has a number of more than {MOST_DIGITS} digits")
        return line

    def mark(self) -> None:
        """Start a group of values."""
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        """Pop the values since the last mark."""
        values, self.stack = self.stack, self.below.pop()
        return values

    def pop(self, count: int) -> list[Any]:
        """Pop the last `count` values."""
        start = len(self.stack) - count
        if start < 0:
            raise PlainPickleError(f"it is damaged near byte {self.place}: a value is missing")
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def memorize(self, number: int) -> None:
        """Store the top of the stack under a number."""
        self.memo[number] = self.stack[-1]

    def recall(self, number: int) -> Any:
        """The value stored under a number; for an array with content, the array itself."""
        value = self.memo[number]
        return value.value if isinstance(value, Array) and value.value is not None else value

    def fill_list(self, values: list[Any]) -> None:
        """Append to the list on top of the stack."""
        expect(self.stack[-1], list).extend(values)

    def fill_dict(self, values: list[Any]) -> None:
        """Insert keys and values into the dictionary on top of the stack."""
        _put(expect(self.stack[-1], dict), values)

    def name_object(self, module: Any, name: Any) -> Named:
        """Resolve a global to a placeholder that holds only its name."""
        return look_up(f"{expect(module, str)}.{expect(name, str)}")

    def reduce(self) -> Any:
        """Pop a callable and its arguments, and return the result of the call."""
        called, arguments = self.pop(2)
        return call(expect(called, Named).name, expect(arguments, tuple), self.budget)

    def build(self) -> None:
        """Pop an object and its state, and push the object with that state."""
        target, state = self.pop(2)
        self.stack.append(set_state(target, state, self.budget))


def _put(target: dict[Any, Any], values: list[Any]) -> dict[Any, Any]:
    for key, value in zip(values[::2], values[1::2], strict=True):
        check_key(key)
        target[key] = value
    return target


def _read_int(machine: Machine) -> Any:
    """Read an integer, or a boolean, which protocols 0 and 1 write as 00 and 01."""
    line = machine.take_digits()
    return line == b"01" if line in {b"00", b"01"} else check_int(int(line))


def _read_long(form: str) -> Callable[[Machine], int]:
    return lambda machine: check_int(
        int.from_bytes(machine.take_counted(form), "little", signed=True)
    )


def _read_string(machine: Machine) -> str:
    """Read Python 2's repr of a byte string."""
    line = machine.take_line().strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in {b"'", b'"'}:
        raise PlainPickleError(f"it is damaged near byte {machine.place}: a string has no quotes")
    return ESCAPE.sub(_unescape, line[1:-1]).decode("latin1")


def _unescape(match: re.Match[bytes]) -> bytes:
    escape = match[1]
    return bytes([int(escape[1:], 16)]) if len(escape) == 3 else ESCAPED[escape]


def _read_bytes(form: str, convert: Callable[[bytes], Any] = bytes) -> Callable[[Machine], Any]:
    return lambda machine: convert(machine.take_counted(form))


def _read_latin1(form: str) -> Callable[[Machine], str]:
    return lambda machine: machine.take_counted(form).decode("latin1")


def _read_text(form: str) -> Callable[[Machine], str]:
    return lambda machine: machine.take_counted(form).decode("utf-8", "surrogatepass")


def _read_number(form: str) -> Callable[[Machine], Any]:
    return lambda machine: machine.take_number(form)


def _check_protocol(machine: Machine) -> None:
    protocol = machine.take_number("B")
    if protocol > NEWEST:
        raise PlainPickleError(f"its protocol must be 0 to {NEWEST} (got {protocol})")


# Opcodes that push one value; each consumes its own operands from the stack and the bytes.
PUSHES: Mapping[bytes, Callable[[Machine], Any]] = {
    pickle.NONE: lambda _: None,
    pickle.NEWTRUE: lambda _: True,
    pickle.NEWFALSE: lambda _: False,
    pickle.EMPTY_DICT: lambda _: {},
    pickle.EMPTY_LIST: lambda _: [],
    pickle.EMPTY_TUPLE: lambda _: (),
    pickle.INT: _read_int,
    pickle.BININT: _read_number("<i"),
    pickle.BININT1: _read_number("B"),
    pickle.BININT2: _read_number("<H"),
    pickle.LONG: lambda machine: check_int(int(machine.take_digits().rstrip(b"L"))),
    pickle.LONG1: _read_long("B"),
    pickle.LONG4: _read_long("<I"),
    pickle.FLOAT: lambda machine: float(machine.take_digits()),
    pickle.BINFLOAT: _read_number(">d"),
    pickle.STRING: _read_string,
    pickle.SHORT_BINSTRING: _read_latin1("B"),
    pickle.BINSTRING: _read_latin1("<I"),
    pickle.UNICODE: lambda machine: machine.take_line().decode("raw-unicode-escape"),
    pickle.SHORT_BINUNICODE: _read_text("B"),
    pickle.BINUNICODE: _read_text("<I"),
    pickle.BINUNICODE8: _read_text("<Q"),
    pickle.SHORT_BINBYTES: _read_bytes("B"),
    pickle.BINBYTES: _read_bytes("<I"),
    pickle.BINBYTES8: _read_bytes("<Q"),
    pickle.BYTEARRAY8: _read_bytes("<Q", bytearray),
    pickle.TUPLE: lambda machine: tuple(machine.pop_mark()),
    pickle.TUPLE1: lambda machine: tuple(machine.pop(1)),
    pickle.TUPLE2: lambda machine: tuple(machine.pop(2)),
    pickle.TUPLE3: lambda machine: tuple(machine.pop(3)),
    pickle.LIST: Machine.pop_mark,
    pickle.DICT: lambda machine: _put({}, machine.pop_mark()),
    pickle.GET: lambda machine: machine.recall(int(machine.take_digits())),
    pickle.BINGET: lambda machine: machine.recall(machine.take_number("B")),
    pickle.LONG_BINGET: lambda machine: machine.recall(machine.take_number("<I")),
    pickle.GLOBAL: lambda machine: machine.name_object(
        *(machine.take_line().decode() for _ in range(2))
    ),
    pickle.STACK_GLOBAL: lambda machine: machine.name_object(*machine.pop(2)),
    pickle.REDUCE: Machine.reduce,
}
# Opcodes that modify existing state.
CHANGES: Mapping[bytes, Callable[[Machine], None]] = {
    pickle.PROTO: _check_protocol,
    pickle.FRAME: lambda machine: machine.take_number("<Q"),
    pickle.MARK: Machine.mark,
    pickle.PUT: lambda machine: machine.memorize(int(machine.take_digits())),
    pickle.BINPUT: lambda machine: machine.memorize(machine.take_number("B")),
    pickle.LONG_BINPUT: lambda machine: machine.memorize(machine.take_number("<I")),
    pickle.MEMOIZE: lambda machine: machine.memorize(len(machine.memo)),
    pickle.APPEND: lambda machine: machine.fill_list(machine.pop(1)),
    pickle.APPENDS: lambda machine: machine.fill_list(machine.pop_mark()),
    pickle.SETITEM: lambda machine: machine.fill_dict(machine.pop(2)),
    pickle.SETITEMS: lambda machine: machine.fill_dict(machine.pop_mark()),
    pickle.BUILD: Machine.build,
}
