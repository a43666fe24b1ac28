"""Images in tar files, as the webdataset library lays them out, read by place: an index says where each member lies.

A streaming reader gives images in the order of its shards and shuffles within a buffer. Here every image has an index,
as in a folder, so that order, shares, crops and resuming are those of a folder, to the image.
"""

from __future__ import annotations

import glob
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dino.data.decode import EXTENSIONS
from dino.data.index import Index, Stamp, read_stamp
from dino.errors import DataError

ENDING = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LABEL = ".cls"
AT_ONCE = 16  # shards that are scanned together: on a network disk the time is spent waiting
GROUP = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


class Found(NamedTuple):
    """An image in a shard, as an index remembers it: its label is that of a .cls member beside it."""

    name: str
    offset: int
    size: int
    label: int | None


@dataclass(frozen=True)
class Member:
    """One image in a shard."""

    shard: Path
    stamp: Stamp
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        """SHARD/NAME, for error texts; ends like the image."""
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Its content: one open and one read.

        Raises:
            DataError: The shard has changed since the run began.
            OSError: The shard cannot be read.
        """
        with self.shard.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) < self.size or read_stamp(self.shard) != self.stamp:
            raise DataError(
                f"{self.shard} has changed since the run began", remedy="start it again"
            )
        return content


@dataclass(frozen=True, eq=False)
class Members:
    """Where N images lie.

    Attributes:
        shards: Path and stamp of each tar file.
        places: Number of the shard, offset and size in bytes of each image, int64 (N, 3).
    """

    shards: tuple[tuple[Path, Stamp], ...]
    places: np.ndarray

    def member(self, index: int, name: str) -> Member:
        """Image `index`, which is called `name`."""
        number, offset, size = self.places[index].tolist()
        shard, stamp = self.shards[number]
        return Member(shard, stamp, name, offset, size)

    def selected(self, indices: Sequence[int]) -> Members:
        """The images of these indices, in their order."""
        return replace(self, places=self.places[np.asarray(indices, dtype=np.int64)])


def is_pattern(path: str) -> bool:
    """Whether a path is meant as tar shards; an existing folder or file of another kind is not."""
    return path.endswith((ENDING, *PACKED)) or (ENDING in path and not os.path.exists(path))


def expand_braces(pattern: str) -> list[str]:
    """Write out `{000..012}` and `{one,two}`, the last group running fastest, as a shell does.

    Raises:
        DataError: A range that falls, or braces of any other form.
    """
    found = GROUP.search(pattern)
    if found is None:
        if "{" in pattern or "}" in pattern:
            raise DataError(
                f"{pattern}: braces hold a range, as {{000..012}}, or a list, as {{one,two}}, not nested"
            )
        return [pattern]
    first, last, choices = found.groups()
    if first is not None and int(first) > int(last):
        raise DataError(
            f"{pattern}: {{{first}..{last}}} falls", remedy=f"write {{{last}..{first}}}"
        )
    padded = any(len(end) > 1 and end[0] == "0" for end in (first, last) if end)
    width = max(len(first), len(last)) if padded else 0
    words = (
        choices.split(",")
        if first is None
        else [f"{n:0{width}}" for n in range(int(first), int(last) + 1)]
    )
    tails = expand_braces(pattern[found.end() :])
    return [
        f"{head}{word}{tail}"
        for head in expand_braces(pattern[: found.start()])
        for word in words
        for tail in tails
    ]


def find_shards(pattern: str, flag: str) -> tuple[Path, ...]:
    """The tar files that a pattern of braces and wildcards names, in its order; those of one wildcard sorted.

    Raises:
        DataError: A shard is missing, named twice or packed, or a wildcard matches nothing.
    """
    names = [pattern] if os.path.exists(pattern) else expand_braces(pattern)
    wild = [name for name in names if not os.path.exists(name) and glob.has_magic(name)]
    matches = {name: sorted(glob.glob(name)) for name in wild}
    paths = [path for name in names for path in matches.get(name, [name])]
    missing = [name for name in names if not matches.get(name, os.path.exists(name))]
    if missing:
        raise DataError(
            f"{flag} {pattern}: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}"
        )
    repeated = next(
        (
            path
            for path, after in zip(sorted(paths), sorted(paths)[1:], strict=False)
            if path == after
        ),
        None,
    )
    if repeated:
        raise DataError(f"{flag} {pattern} names the shard {repeated} twice")
    odd = next((path for path in paths if not path.endswith(ENDING)), None)
    if odd:
        raise DataError(
            f"{flag} {pattern}: {odd} is no plain {ENDING} file",
            remedy="unpack compressed ones, they have no places",
        )
    return tuple(map(Path, paths))


def list_members(shards: Sequence[Path]) -> tuple[list[Found], Members]:
    """Every image of the shards, in their order.

    Raises:
        DataError: A shard is no tar file, cut short, without images, or has images that are links.
    """
    stamps = [_stamp(path) for path in shards]
    images: list[Found] = []
    places: list[tuple[int, int, int]] = []
    with Index("shards", "\n".join(os.path.abspath(path) for path in shards)) as index:
        for number, found in enumerate(_look_into(shards, stamps, index)):
            images += found
            places += [(number, image.offset, image.size) for image in found]
    return images, Members(
        tuple(zip(shards, stamps, strict=True)), np.array(places, dtype=np.int64).reshape(-1, 3)
    )


def _stamp(shard: Path) -> Stamp:
    try:
        return read_stamp(shard)
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error}") from error


def _look_into(
    shards: Sequence[Path], stamps: Sequence[Stamp], index: Index
) -> Iterator[list[Found]]:
    """What each shard holds, from the index where that knows it."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(shards), AT_ONCE):
            some = list(
                zip(
                    map(str, shards[start : start + AT_ONCE]),
                    stamps[start : start + AT_ONCE],
                    strict=True,
                )
            )
            known = {name: index.look_up(name, stamp) for name, stamp in some}
            unknown = [(name, stamp) for name, stamp in some if known[name] is None]
            for (name, stamp), found in zip(
                unknown, pool.map(scan_shard, [name for name, _ in unknown]), strict=True
            ):
                known[name] = found
                index.store(name, stamp, found, len(found))
            yield from ([Found(*image) for image in found] for found in known.values())


def scan_shard(path: str) -> list[Found]:
    """The images of one tar file, from its headers alone.

    Raises:
        DataError: It is no tar file, cut short, without images, or has images that are links.
    """
    images: list[Found] = []
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                name = os.path.normpath(member.name)
                if name.endswith(LABEL):
                    labels[sample_of(name)] = _read_label(tar, member, path)
                elif name.lower().endswith(EXTENSIONS) and not member.isdir():
                    if not member.isreg() or member.issparse():
                        raise DataError(
                            f"{path} holds {name} as a link",
                            remedy="pack it with the files themselves",
                        )
                    images.append(Found(name, member.offset_data, member.size, None))
            _check_end(tar, path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is no tar file or cut short ({error})", remedy="copy or pack it again"
        ) from error
    if not images:
        raise DataError(f"{path} holds no image (looked for {' '.join(EXTENSIONS)})")
    return [image._replace(label=labels.get(sample_of(image.name))) for image in images]


def sample_of(name: str) -> str:
    """What members of one sample share, in webdataset's words its key: the name up to the base name's first dot."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.partition(".")[0])


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> int:
    file = tar.extractfile(member)
    text = file.read().strip() if file else b""
    if not text.isdigit():
        raise DataError(f"{path}: {member.name} holds {text[:20]!r}, no class number")
    return int(text)


def _check_end(tar: tarfile.TarFile, path: str) -> None:
    """A tar file ends with a block of zeros; tarfile takes damage and a missing end for one too."""
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise DataError(
            f"{path} is damaged or cut short at byte {tar.offset}", remedy="copy or pack it again"
        )
