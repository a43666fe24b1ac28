"""Checks, from opcodes alone, how deep tuples nest in a pickle that another reader will load.

torch's weights-only reader builds dictionaries with any key that a file specifies. Hashing a tuple
recurses without limit and revisits shared parts, so a small file could crash or hang the process.
"""

from __future__ import annotations

import pickletools
from typing import IO, NamedTuple

from dino.plain_pickle.limits import MOST_LEVELS, MOST_VALUES, PlainPickleError

COUNTED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
GETS = {"GET", "BINGET", "LONG_BINGET"}


class Nesting(NamedTuple):
    """Nesting of one value on the stack; anything but a tuple ends the recursion."""

    levels: int = 0
    values: int = 1


def check_tuples(file: IO[bytes]) -> None:
    """Follow one pickle to its end without building its values.

    Raises:
        PlainPickleError: Its tuples exceed the limits.
        ValueError, IndexError, KeyError: The pickle is damaged.
    """
    stack: list[Nesting] = []
    below: list[list[Nesting]] = []
    memo: dict[int, Nesting] = {}
    for opcode, argument, _ in pickletools.genops(file):
        name = opcode.name
        if name == "MARK":
            below.append(stack)
            stack = []
        elif name in PUTS or name == "MEMOIZE":
            memo[len(memo) if argument is None else argument] = stack[-1]
        elif name in GETS and argument is not None:
            stack.append(memo[argument])
        elif name == "TUPLE":
            values, stack = stack, below.pop()
            stack.append(_join(values))
        elif name in COUNTED:
            values = [stack.pop() for _ in range(COUNTED[name])]
            stack.append(_join(values))
        else:
            stack = _apply(opcode, stack, below)


def _apply(
    opcode: pickletools.OpcodeInfo, stack: list[Nesting], below: list[list[Nesting]]
) -> list[Nesting]:
    """The stack after an opcode that does not create a tuple."""
    taken = list(opcode.stack_before)
    if pickletools.markobject in taken:
        stack = below.pop()
        taken = taken[: taken.index(pickletools.markobject)]
    for _ in taken:
        stack.pop()
    stack.extend(Nesting() for _ in opcode.stack_after)
    return stack


def _join(parts: list[Nesting]) -> Nesting:
    levels = 1 + max((part.levels for part in parts), default=0)
    values = 1 + sum(part.values for part in parts)
    if levels > MOST_LEVELS or values > MOST_VALUES:
        raise PlainPickleError(
            f"its tuples nest more than {MOST_LEVELS} levels deep or repeat their parts too often"
        )
    return Nesting(levels, values)
