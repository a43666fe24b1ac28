"""The rows of one Parquet or Arrow file: labels and paths, and where each image is.

In an Arrow file, such as `save_to_disk` of Hugging Face `datasets` writes, an image is a range of
bytes, as in a tar shard. Nothing is decoded but labels and paths, and a file's claims are checked
before memory is taken for them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dino.data.row_groups import AT_ONCE, LARGEST_GROUP, Leaf, decode, no_column, open_parquet, take
from dino.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET, ARROW = ".parquet", ".arrow"
MOST_ROWS = 10_000_000  # of a file
LARGEST_TEXT = 2**30  # bytes of all paths or labels of a file
TEXTS = 4096  # paths and labels that are decoded before their size is checked
FILE_MARK, STREAM_END = b"ARROW1", b"\xff\xff\xff\xff\0\0\0\0"  # of Arrow's two formats


class Columns(NamedTuple):
    """The columns that are read, or None.

    Attributes:
        content: Encoded images.
        path: Their paths.
        label: Their labels.
    """

    content: Leaf | None
    path: Leaf | None
    label: Leaf | None


class Scan(NamedTuple):
    """What is known of the R rows of a file without decoding images.

    Attributes:
        places: int64 (R, 2): row group and row in it (Parquet), or offset and size in bytes
            (Arrow).
        present: bool (R,): whether the row holds an encoded image.
        paths: The path of each image or None; empty without such a column.
        labels: The label of each image as stored; empty without such a column.
    """

    places: np.ndarray
    present: np.ndarray
    paths: list[str | None]
    labels: list[Any]


def is_parquet(path: Path) -> bool:
    """Whether a table is a Parquet file; the others are Arrow files."""
    return path.suffix.lower() == PARQUET


def read_schema(path: Path) -> pa.Schema:
    """Names, types and metadata of a table's columns."""
    return open_parquet(path).schema_arrow if is_parquet(path) else _open_arrow(path)[0].schema


def read_first(path: Path, leaf: Leaf) -> Any:
    """The first value of a column that is not null; None if there is none among the first rows."""
    parts = (
        decode(open_parquet(path), leaf, TEXTS, LARGEST_TEXT)
        if is_parquet(path)
        else (take(batch, leaf) for batch in _read_batches(_open_arrow(path)[0]))
    )
    first = next((part for part in parts if len(part)), None)
    return None if first is None else next(iter(first.drop_null().to_pylist()), None)


def scan_table(path: Path, columns: Columns) -> Scan:
    """Locate the images of one file, and read its labels and paths.

    Raises:
        DataError: It has too many rows, or they take too much memory.
        Exception: Any error of pyarrow, if the file is damaged.
    """
    return _scan_parquet(path, columns) if is_parquet(path) else _scan_arrow(path, columns)


def _scan_parquet(path: Path, columns: Columns) -> Scan:
    file = open_parquet(path)
    groups = measure_groups(file, columns.content)
    rows = np.concatenate([np.arange(count) for count in groups[:, 0]] or [np.arange(0)])
    places = np.stack([np.repeat(np.arange(len(groups)), groups[:, 0]), rows], axis=1)
    paths, labels = (
        [] if leaf is None else _join(decode(file, leaf, TEXTS, LARGEST_TEXT))
        for leaf in (columns.path, columns.label)
    )
    present = _find_present(file, columns.content, groups)
    return Scan(places.astype(np.int64), present, paths, labels)


def measure_groups(file: Any, leaf: Leaf | None) -> np.ndarray:
    """Rows of each row group, and bytes of their images, as the file claims: int64 (groups, 2)."""
    groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
    counts = [group.num_rows for group in groups]
    sizes = [_find_chunk(group, leaf).total_uncompressed_size if leaf else 0 for group in groups]
    _check_claim("rows", min(counts, default=0), sum(counts), MOST_ROWS)
    _check_claim(
        "bytes of a row group", min(sizes, default=0), max(sizes, default=0), LARGEST_GROUP
    )
    return np.column_stack([counts, sizes]).astype(np.int64)


def _check_claim(what: str, least: int, claimed: int, most: int) -> None:
    if least < 0 or claimed > most:
        raise DataError(f"it claims {claimed} {what}, and {most} is the most")


def _find_chunk(group: Any, leaf: Leaf) -> Any:
    chunks = [group.column(number) for number in range(group.num_columns)]
    found = [chunk for chunk in chunks if chunk.path_in_schema == ".".join(leaf)]
    if not found:
        raise no_column(leaf)
    return found[0]


def _join(parts: Iterator[pa.Array]) -> list[Any]:
    return [value for part in parts for value in part.to_pylist()]


def _find_present(file: Any, leaf: Leaf | None, groups: np.ndarray) -> np.ndarray:
    """Which rows hold an encoded image; only groups with some that do not are decoded."""
    if leaf is None:
        return np.zeros(groups[:, 0].sum(), bool)
    present = [np.zeros(0, bool)]
    for number, count in enumerate(groups[:, 0]):
        statistics = _find_chunk(file.metadata.row_group(number), leaf).statistics
        if statistics is None or not statistics.null_count:
            present.append(np.ones(count, bool))
        else:
            present += map(_is_valid, decode(file, leaf, AT_ONCE, LARGEST_GROUP, [number]))
    return np.concatenate(present)


def _is_valid(array: pa.Array) -> np.ndarray:
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=bool)


def _open_arrow(path: Path) -> tuple[Any, pa.Buffer]:
    """A reader of an Arrow file and the whole file, mapped into memory.

    Raises:
        DataError: Its end is missing.
    """
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        whole = file.read_buffer()
    if whole[: len(FILE_MARK)].to_pybytes() == FILE_MARK:
        return pa.ipc.open_file(whole), whole
    if whole[-len(STREAM_END) :].to_pybytes() != STREAM_END:
        raise DataError("its end is missing")
    return pa.ipc.open_stream(whole), whole


def _read_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    count = getattr(reader, "num_record_batches", None)
    return iter(reader) if count is None else map(reader.get_batch, range(count))


def _scan_arrow(path: Path, columns: Columns) -> Scan:
    reader, whole = _open_arrow(path)
    places, present = [np.zeros((0, 2), np.int64)], [np.zeros(0, bool)]
    texts: tuple[list[Any], list[Any]] = [], []
    for batch in _read_batches(reader):
        images = take(batch, columns.content) if columns.content else None
        blank = np.zeros((len(batch), 2), np.int64), np.zeros(len(batch), bool)
        located = blank if images is None else (_locate(images, whole), _is_valid(images))
        places.append(located[0])
        present.append(located[1])
        _check_claim("rows", 0, sum(map(len, places)), MOST_ROWS)
        for leaf, values in zip((columns.path, columns.label), texts, strict=True):
            values += take(batch, leaf).to_pylist() if leaf else []
    return Scan(np.concatenate(places), np.concatenate(present), *texts)


def _locate(images: pa.Array, whole: pa.Buffer) -> np.ndarray:
    """Offset and size of each image in its file, int64 (R, 2).

    Raises:
        DataError: They are not in the file as they are.
    """
    _, offsets, content = images.buffers()
    if content is None or not content.size:
        return np.zeros((len(images), 2), np.int64)
    width = np.int64 if str(images.type).startswith("large") else np.int32
    start = content.address - whole.address
    if not 0 <= start <= whole.size - content.size:
        raise DataError("its buffers are compressed", remedy="write it without compression")
    ends = np.frombuffer(offsets, width)[images.offset :][: len(images) + 1].astype(np.int64)
    return np.stack([start + ends[:-1], np.diff(ends)], axis=1)
