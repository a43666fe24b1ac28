"""Images in Parquet files, read by index.

The images of a row group are encoded together, so that reading one of them means decoding the
group. A process keeps the groups that it decoded last. pyarrow is imported on first use; its errors
are OSErrors and ValueErrors.
"""

from __future__ import annotations

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.data.index import Stamp, read_stamp
from dino.data.shards import Members
from dino.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

LARGEST_GROUP = 2**29  # bytes of its images, decoded
KEPT = 2**26  # bytes of decoded groups that a process keeps, beside the last one
AT_ONCE = 16  # images that are decoded before their size is checked

Leaf = tuple[str, ...]  # a column, or a column and one of its fields


@dataclass(frozen=True)
class Row:
    """One image in a Parquet file."""

    file: Path
    stamp: Stamp
    name: str
    leaf: Leaf
    group: int
    row: int

    def __str__(self) -> str:
        """FILE/NAME, for errors; has the extension of an image."""
        return f"{self.file}/{self.name}"

    def read(self) -> bytes:
        """Its content.

        Raises:
            DataError: The row holds no image, or the file has changed since the run began.
            OSError: The file cannot be read, or is damaged.
            ValueError: It is damaged.
        """
        if read_stamp(self.file) != self.stamp:
            raise DataError(
                f"{self.file} has changed since the run began", remedy="restart the run"
            )
        content = _groups.read(self.file, self.stamp, self.leaf, self.group)[self.row].as_py()
        if content is None:
            raise DataError(f"{self} holds no image")
        return bytes(content)


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows(Members):
    """Locations of N images in Parquet files: `places` are file, row group and row in the group.

    Attributes:
        leaf: The column of encoded images.
        cost: Bytes that are decoded for one image at random; 0 if all groups can be kept.
    """

    leaf: Leaf
    cost: float

    def member(self, index: int, name: str) -> Row:
        """Image `index`, under the given name."""
        number, group, row = self.places[index].tolist()
        file, stamp = self.shards[number]
        return Row(Path(str(file)), stamp, name, self.leaf, group, row)


class _Groups:
    """The row groups that this process decoded last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # threads that pack images wait for one that decodes
        self.known: OrderedDict[tuple[Any, ...], pa.ChunkedArray] = OrderedDict()

    def read(self, path: Path, stamp: Stamp, leaf: Leaf, group: int) -> pa.ChunkedArray:
        """The images of a row group."""
        import pyarrow as pa

        key = path, stamp, leaf, group
        with self.lock:
            if key not in self.known:
                parts = decode(_open_again(path, stamp), leaf, AT_ONCE, LARGEST_GROUP, [group])
                self.known[key] = pa.chunked_array(list(parts))
            self.known.move_to_end(key)
            while len(self.known) > 1 and sum(one.nbytes for one in self.known.values()) > KEPT:
                self.known.popitem(last=False)
            return self.known[key]


_groups = _Groups()


def open_parquet(path: Path) -> Any:
    """Open a Parquet file to read it in this thread alone."""
    import pyarrow.parquet as pq

    return pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True)


@functools.lru_cache(maxsize=8)
def _open_again(path: Path, stamp: Stamp) -> Any:  # noqa: ARG001 - a file that changes is another
    return open_parquet(path)


def decode(
    file: Any, leaf: Leaf, rows: int, most: int, groups: Sequence[int] | None = None
) -> Iterator[pa.Array]:
    """Yield a column of a Parquet file.

    Args:
        file: The file.
        leaf: The column.
        rows: How many are decoded at a time.
        most: Bytes that are allowed in all.
        groups: The row groups; None for all.

    Raises:
        DataError: It is larger.
    """
    chosen = range(file.num_row_groups) if groups is None else groups
    size = 0
    for batch in file.iter_batches(rows, chosen, columns=[".".join(leaf)], use_threads=False):
        array = take(batch, leaf)
        size += array.nbytes
        if size > most:
            raise DataError(f"{'.'.join(leaf)} takes more than {most} bytes")
        yield array


def take(batch: pa.RecordBatch, leaf: Leaf) -> pa.Array:
    """A column of a batch, or one of its fields; null where the column is null.

    Raises:
        DataError: There is no such column.
        ValueError: It contradicts itself.
    """
    if leaf[0] not in batch.schema.names:
        raise no_column(leaf)
    array = batch.column(leaf[0])
    array.validate(full=True)  # what an Arrow file holds is used as it is
    for name in leaf[1:]:
        array = array.flatten()[array.type.get_field_index(name)]
    return array


def no_column(leaf: Leaf) -> DataError:
    """The error about a table that lacks a column which another one of its set has."""
    return DataError(f"it has no column {'.'.join(leaf)}", remedy="name tables of one data set")
