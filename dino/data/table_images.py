"""Tables of the same columns as one list of images, with their names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dino.data.columns import Array, is_large
from dino.data.decode import EXTENSIONS, Stored, is_picture, open_picture
from dino.data.image_list import find_missing
from dino.data.image_source import ImageSource
from dino.data.index import NO_STAMP, Enter, Stamp, lasting
from dino.data.kept import list_once
from dino.data.listing import Passed, add, is_hidden, show
from dino.data.row_groups import KEPT, Rows, open_parquet
from dino.data.shard_files import LocalShard
from dino.data.shards import Members
from dino.data.table_columns import choose_columns, explain_unlabelled, number_labels
from dino.data.table_rows import Columns, Scan, is_parquet, measure_groups, scan_table
from dino.errors import DataError

EMPTY = "rows without an image"
LONGEST = 200  # letters of a name; file systems take 255 bytes
PLAIN = ".png"  # the ending of names that say nothing; any format may have it

Names = tuple[str, ...]
Files = tuple[tuple[LocalShard, Stamp], ...]


class Images(NamedTuple):
    """The N images of several tables.

    Attributes:
        files: Number of the file of each image, int64 (N,).
        rows: Its row there, int64 (N,).
        places: As of one file, int64 (N, 2).
        paths: Path of each, or None.
        labels: Label of each as stored; empty without such a column.
        encoded: Whether the tables hold the images; otherwise they name files.
    """

    files: np.ndarray
    rows: np.ndarray
    places: np.ndarray
    paths: list[str | None]
    labels: list[Any]
    encoded: bool


def read_tables(paths: Sequence[Path], passed: Passed, *, labelled: bool) -> ImageSource:
    """List the images of tables of the same columns.

    Args:
        paths: The files, in order.
        passed: What else is there; rows without an image are added.
        labelled: Whether each image must have a label.

    Raises:
        DataError: A file is damaged, has no column of images, or other columns than the first;
            there is no image; a file that a row names is missing; or labels are missing.
    """
    files = tuple((file, file.stamp()) for file in map(LocalShard, paths))
    with _naming(paths[0]):
        columns, known = choose_columns(paths[0])
    root = Path(os.path.commonpath([path.absolute().parent for path in paths]))
    stamps = {file.place: stamp for file, stamp in files}
    source = list_once(
        "tables",
        root,
        (*stamps, str(paths[0]), str(columns), *EXTENSIONS),
        lambda enter: _list_tables(files, columns, known, root, enter),
        stamps.__getitem__,
    )
    if labelled and source.labels is None:
        raise explain_unlabelled(paths[0], columns.label)
    if source.members:
        cost = _find_cost(paths, columns)
        source = replace(source, members=_find_members(source.members.places, files, columns, cost))
    return replace(source, passed={**passed, **source.passed})


def _list_tables(
    files: Files, columns: Columns, known: tuple[str, ...], root: Path, enter: Enter
) -> tuple[ImageSource, Mapping[str, Stamp]]:
    """What `list_once` asks for."""
    paths, scans = [file.path for file, _ in files], list[Scan]()
    for path in paths:
        with _naming(path):
            scans.append(scan_table(path, columns))
        if is_large(sum(int(scan.present.sum()) for scan in scans)):
            enter()
    passed: Passed = {}
    rows = _merge(scans, paths, passed)
    with _naming(paths[0]):
        labels, classes = number_labels(rows.labels, known)
    source = ImageSource(
        root=root,
        names=(),
        labels=labels,
        classes=classes,
        origin=f"{len(paths)} {'Parquet' if is_parquet(paths[0]) else 'Arrow'} files, the first"
        f" {paths[0]}",
        passed=passed,
    )
    if not rows.encoded:  # the files that tables name may change at any time
        source = replace(source, names=_name_files(rows, paths, root))
        return source, {file.place: NO_STAMP for file, _ in files}
    members = _find_members(np.column_stack([rows.files, rows.places]), files, columns, cost=0.0)
    ending = _find_ending(members.member(0, paths[0].name))
    names = _name_rows(rows, paths, source, ending or PLAIN)
    # What could not be read may be readable next time.
    kept = {file.place: lasting(stamp) if ending else NO_STAMP for file, stamp in files}
    return replace(source, members=members, names=names), kept


def _find_members(
    places: np.ndarray | Array, files: Files, columns: Columns, cost: float
) -> Members:
    """Where the images are, whose `places` are file and place in the file."""
    if columns.content and is_parquet(files[0][0].path):
        return Rows(files, places, leaf=columns.content, cost=cost)
    return Members(files, places)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say in every error which file it is about."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # noqa: BLE001 - pyarrow raises anything on damaged files
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path} cannot be read: {reason}", remedy="download or write it again"
        ) from error


def _merge(scans: Sequence[Scan], paths: Sequence[Path], passed: Passed) -> Images:
    """The images of all files; rows without one are counted in `passed`.

    Raises:
        DataError: There is none.
    """
    files = np.repeat(np.arange(len(scans)), [len(scan.present) for scan in scans])
    rows = np.concatenate([np.arange(len(scan.present)) for scan in scans])
    present = np.concatenate([scan.present for scan in scans])
    where = list(chain.from_iterable(scan.paths for scan in scans)) or [None] * len(rows)
    labels = list(chain.from_iterable(scan.labels for scan in scans))
    encoded = bool(present.any())
    used = present if encoded else np.array([bool(name) for name in where], dtype=bool)
    empty = np.flatnonzero(~used)
    if len(empty):
        first = f"{paths[files[empty[0]]].name} row {rows[empty[0]]}"
        add(passed, EMPTY, first, len(empty))
    if not used.any():
        raise DataError(f"{paths[0]} holds no image", remedy="all rows are empty")
    kept = np.flatnonzero(used)
    return Images(
        files[kept],
        rows[kept],
        np.concatenate([scan.places for scan in scans])[kept],
        [where[index] for index in kept],
        [labels[index] for index in kept] if labels else [],
        encoded,
    )


def _name_rows(rows: Images, paths: Sequence[Path], source: ImageSource, ending: str) -> Names:
    """CLASS/NAME of each image, as in a folder, where the table has names and they differ.

    Otherwise the name is that of the table, the number of the row, and `ending`.
    """
    folders = [""] * len(rows.files)
    if source.labels is not None:
        known = [_as_folder(number, name) for number, name in enumerate(source.classes)]
        folders = [known[label] for label in source.labels]
    own = [os.path.basename(path or "") for path in rows.paths]
    names = tuple(map(os.path.join, folders, own))
    if all(is_picture(name) and _is_plain(name) for name in own) and len({*names}) == len(own):
        return names
    stems = [path.stem.replace(".", "_") for path in paths]  # a dot would end a sample of a shard
    return tuple(
        os.path.join(folder, f"{stems[file]}-{row:06}{ending}")
        for folder, file, row in zip(folders, rows.files, rows.rows, strict=True)
    )


def _as_folder(number: int, name: str) -> str:
    """The name of a class as that of a folder that is not passed over."""
    plain = name.replace(os.sep, "_").strip()
    return plain if _is_plain(plain) else str(number)


def _is_plain(name: str) -> bool:
    """Whether a file or folder of this name is kept everywhere, and shown in one line."""
    return 0 < len(name) <= LONGEST and name.isprintable() and not is_hidden(name)


def _find_ending(first: Stored) -> str | None:
    """The ending for names of images of its format; None if it cannot be read."""
    try:
        with open_picture(first.read()) as picture:
            ending = f".{picture.format}".lower()
    except Exception:  # noqa: BLE001 - whoever reads the image reports it
        return None
    return ending if is_picture(ending) else PLAIN


def _name_files(rows: Images, paths: Sequence[Path], root: Path) -> Names:
    """Paths relative to `root` of the files that tables name, relative to themselves or absolute.

    Raises:
        DataError: A file is missing.
    """
    folders = [os.path.relpath(path.absolute().parent, root) for path in paths]
    names = tuple(
        os.path.normpath(os.path.join(folders[file], str(name)))
        for file, name in zip(rows.files, rows.paths, strict=True)
    )
    missing, _ = find_missing(root, dict(enumerate(names)))
    if missing:
        first = missing[0]
        raise DataError(
            f"{paths[rows.files[first]]} holds no images but paths, and {len(missing)} of"
            f" {len(names)} do not exist, the first is {show(str(rows.paths[first]))} in row"
            f" {rows.rows[first]}",
            remedy="paths are absolute or relative to the table; write it with the images inside",
        )
    return names


def _find_cost(paths: Sequence[Path], columns: Columns) -> float:
    """Bytes to decode for one image at random; 0 if a process can keep them all.

    Only Parquet files decode more than the image; they are opened to tell.
    """
    if not is_parquet(paths[0]):
        return 0.0
    groups = []
    for path in paths:
        with _naming(path):
            groups.append(measure_groups(open_parquet(path), columns.content))
    counts, sizes = np.concatenate(groups).astype(float).T
    return 0.0 if sizes.sum() <= KEPT else float((counts * sizes).sum() / counts.sum())
