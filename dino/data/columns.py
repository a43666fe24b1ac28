"""Long columns of names and numbers, in files that processes map rather than as objects in each.

A Python string costs 50 bytes besides its text. Reading one writes its reference count, so that
loader processes that were forked soon have copies, and pickling copies in any case. A mapped file
is in memory once, whatever the number of its readers.
"""

from __future__ import annotations

import itertools
import logging
import mmap
import os
import tempfile
import weakref
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.reduction import DupFd
from typing import Any, BinaryIO, TypeVar, overload

import numpy as np

logger = logging.getLogger(__name__)

LARGE = 20_000  # values; below this, objects are small enough
CODING = "utf-8", "surrogateescape"  # file names may hold bytes that are not text
BLOCK = 4096  # values that an iteration decodes at a time

Value = TypeVar("Value")
Layout = tuple[str, int, Sequence[int]]  # dtype, offset in bytes and shape of an array in a file


class MappedFile:
    """A file in memory, shared by all processes that map it.

    For a process that starts, it is pickled as the open file: neither its content, nor its path,
    where there may be no file any more.
    """

    def __init__(self, descriptor: int) -> None:
        """Map the open file; it is closed along with this object.

        Raises:
            OSError: It cannot be mapped.
            ValueError: It is empty.
        """
        self.descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)
        self.memory = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the open file."""
        return _receive, (DupFd(self.descriptor),)


def _receive(sent: Any) -> MappedFile:
    return MappedFile(sent.detach())


@dataclass(frozen=True, eq=False)
class Array:
    """A read-only array in a mapped file. Pickled, it is the file and the place in it."""

    file: MappedFile
    dtype: str
    offset: int
    shape: tuple[int, ...]

    @property
    def values(self) -> np.ndarray:
        """The array, a view of the file."""
        values: np.ndarray = np.ndarray(self.shape, self.dtype, self.file.memory, self.offset)
        return values

    def __len__(self) -> int:
        """Length of the first dimension."""
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """As of the array."""
        return self.values[key]


class Column(Sequence[Value]):
    """Values that become objects when they are read."""

    @abstractmethod
    def read(self, start: int, stop: int) -> tuple[Value, ...]:
        """The values from `start` to before `stop`, both within the column."""

    @overload
    def __getitem__(self, key: int) -> Value: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[Value, ...]: ...
    def __getitem__(self, key: int | slice) -> Value | tuple[Value, ...]:
        """As of a tuple."""
        chosen = range(len(self))[key]
        if isinstance(chosen, int):
            return self.read(chosen, chosen + 1)[0]
        if chosen.step == 1:
            return self.read(chosen.start, max(chosen.start, chosen.stop))
        return tuple(self[index] for index in chosen)

    def __iter__(self) -> Iterator[Value]:
        """Yield all values, without having all of them as objects at any time."""
        for start in range(0, len(self), BLOCK):
            yield from self[start : start + BLOCK]

    def __eq__(self, other: object) -> bool:
        """Whether the values are equal to those of another sequence."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)

    __hash__ = None  # type: ignore[assignment]  # as of a list


class Names(Column[str]):
    """Names as one text: each ends where `ends` says, and a line break separates it from the next.

    Attributes:
        text: The names, uint8.
        ends: Offsets in `text`, int64 (N,).
    """

    def __init__(self, text: Array, ends: Array) -> None:
        """Store the arrays."""
        self.text, self.ends = text, ends

    def __len__(self) -> int:
        """N."""
        return len(self.ends)

    def read(self, start: int, stop: int) -> tuple[str, ...]:
        """As of a column."""
        ends = [int(self.ends[start - 1]) if start else -1, *self.ends[start:stop].tolist()]
        text, first = self.text[ends[0] + 1 : ends[-1]].tobytes(), ends[0] + 1
        return tuple(
            text[before + 1 - first : end - first].decode(*CODING)
            for before, end in itertools.pairwise(ends)
        )


class Numbers(Column[int]):
    """Whole numbers, int64 (N,)."""

    def __init__(self, array: Array) -> None:
        """Store the array."""
        self.array = array

    def __len__(self) -> int:
        """N."""
        return len(self.array)

    def read(self, start: int, stop: int) -> tuple[int, ...]:
        """As of a column."""
        return tuple(self.array[start:stop].tolist())


def is_large(count: int) -> bool:
    """Whether so many values are worth a file."""
    return count >= LARGE


def join_names(names: Sequence[str]) -> bytes | memoryview:
    """All names as one text, with a line break between each two.

    Raises:
        UnicodeEncodeError: A name is none that a system can give a file.
    """
    return names.text.values.data if isinstance(names, Names) else "\n".join(names).encode(*CODING)


def find_ends(names: Sequence[str]) -> np.ndarray:
    """Where each name ends in the text that `join_names` returns, int64 (N,)."""
    if isinstance(names, Names):
        return names.ends.values
    lengths = (len(name.encode(*CODING)) + 1 for name in names)
    return np.cumsum(np.fromiter(lengths, np.int64, len(names))) - 1


def pack_names(names: Sequence[str]) -> Sequence[str]:
    """The same names: few as a tuple, many in a file that loader processes share."""
    if isinstance(names, Names):
        return names
    try:
        text = np.frombuffer(join_names(names), np.uint8) if is_large(len(names)) else None
    except UnicodeEncodeError:  # a program may name its images as it likes
        text = None
    packed = None if text is None else _pack({"text": text, "ends": find_ends(names)})
    return Names(**packed) if packed else tuple(names)


def pack_numbers(numbers: Sequence[int]) -> Sequence[int]:
    """The same whole numbers: few as a tuple, many in a file that loader processes share."""
    if isinstance(numbers, Numbers):
        return numbers
    packed = _pack({"array": np.array(numbers, np.int64)}) if is_large(len(numbers)) else None
    return Numbers(**packed) if packed else tuple(numbers)


def pack_array(array: np.ndarray | Array) -> np.ndarray | Array:
    """The same array: a short one as it is, a long one in a file that loader processes share."""
    if isinstance(array, Array):
        return array
    packed = _pack({"array": array}) if is_large(len(array)) else None
    return packed["array"] if packed else array


def _pack(arrays: Mapping[str, np.ndarray]) -> dict[str, Array] | None:
    """The arrays in a file without a name, which ends with its last reader; None if that fails."""
    try:
        with tempfile.TemporaryFile() as file:
            layouts = write_arrays(file, arrays)
            file.flush()
            return open_arrays(MappedFile(os.dup(file.fileno())), layouts)
    except OSError as error:
        logger.warning("every loader process has its own names of the images: %s", error)
        return None


def write_arrays(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> dict[str, Layout]:
    """Write arrays one after the other, and return where they are in the file."""
    layouts: dict[str, Layout] = {}
    for name, array in arrays.items():
        file.write(bytes(-file.tell() % array.itemsize))
        layouts[name] = array.dtype.str, file.tell(), array.shape
        file.write(np.ascontiguousarray(array).data)
    return layouts


def open_arrays(file: MappedFile, layouts: Mapping[str, Layout]) -> dict[str, Array]:
    """The arrays that `write_arrays` wrote."""
    return {
        name: Array(file, dtype, offset, tuple(shape))
        for name, (dtype, offset, shape) in layouts.items()
    }
