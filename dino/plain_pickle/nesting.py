"""Checks, from opcodes alone, how deep tuples nest in a pickle that another reader will load.

torch's weights-only reader builds dictionaries with any key that a file specifies. Hashing a tuple
recurses without limit and revisits shared parts, so a small file could crash or hang the process.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from typing import IO, NamedTuple

from dino.plain_pickle.limits import DAMAGE, MOST_LEVELS, MOST_VALUES, PlainPickleError

# Number of pickles at the start of a file from before torch 1.6: magic number, protocol, system,
# content, keys.
LEGACY_PICKLES = 5
ARCHIVE = b"PK\x03\x04"
COUNTED = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
GETS = {"GET", "BINGET", "LONG_BINGET"}


class Nesting(NamedTuple):
    """Nesting of one value on the stack; anything but a tuple ends the recursion."""

    levels: int = 0
    values: int = 1


def check_torch_file(path: Path | str) -> None:
    """Reject a `torch.save` file whose tuples nest or repeat beyond the limits of plain pickles.

    Raises:
        OSError: The file cannot be read.
        PlainPickleError: The file is damaged, or its tuples exceed the limits.
    """
    try:
        with Path(path).open("rb") as file:
            is_archive = file.read(len(ARCHIVE)) == ARCHIVE  # as torch decides
            file.seek(0)
            if is_archive:
                _check_archive(file)
            else:
                for _ in range(LEGACY_PICKLES):
                    check_tuples(file)
    except PlainPickleError:
        raise
    except (*DAMAGE, zipfile.BadZipFile, NotImplementedError) as error:
        raise PlainPickleError(f"it is not a complete torch.save file: {error}") from error


def _check_archive(file: IO[bytes]) -> None:
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        for entry in archive.infolist():
            if entry.filename.rsplit("/", 1)[-1] == "data.pkl":
                if entry.file_size > size:  # torch does not compress
                    raise PlainPickleError(f"{entry.filename} claims to be larger than the file")
                with archive.open(entry) as content:
                    check_tuples(content)


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
