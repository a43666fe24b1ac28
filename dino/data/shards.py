"""Images in tar files in the layout of webdataset, read by index through each member's offset.

A streaming reader yields images in shard order and shuffles within a buffer. Here every image has
an index, as in a folder; order, shares, crops and resuming are therefore identical to a folder's.
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
from typing import Any, NamedTuple

import numpy as np

from dino.data.decode import EXTENSIONS
from dino.data.index import Index, Stamp, read_stamp
from dino.errors import DataError

ENDING = ".tar"
PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
LABEL = ".cls"
AT_ONCE = 16  # shards scanned concurrently; on a network disk, most of the time is waiting
GROUP = re.compile(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}")


class Found(NamedTuple):
    """An image in a shard, as stored in an index; its label comes from a .cls member."""

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
        """SHARD/NAME, for errors; has the image's extension."""
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Read the content with one open and one read.

        Raises:
            DataError: The shard has changed since the run began.
            OSError: The shard cannot be read.
        """
        with self.shard.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), self.size, self.offset)
        if len(content) < self.size or read_stamp(self.shard) != self.stamp:
            raise DataError(
                f"{self.shard} has changed since the run began", remedy="restart the run"
            )
        return content


@dataclass(frozen=True, eq=False)
class Members:
    """Locations of N images.

    Attributes:
        shards: Path and stamp of each tar file.
        places: Shard number, offset and size in bytes of each image, int64 (N, 3).
    """

    shards: tuple[tuple[Path, Stamp], ...]
    places: np.ndarray

    def member(self, index: int, name: str) -> Member:
        """Image `index`, under the given name."""
        number, offset, size = self.places[index].tolist()
        shard, stamp = self.shards[number]
        return Member(shard, stamp, name, offset, size)

    def selected(self, indices: Sequence[int]) -> Members:
        """The images with the given indices, in the given order."""
        return replace(self, places=self.places[np.asarray(indices, dtype=np.int64)])


def is_pattern(path: str) -> bool:
    """Whether a path denotes tar shards; an existing path of another kind does not."""
    return path.endswith((ENDING, *PACKED)) or (ENDING in path and not os.path.exists(path))


def expand_braces(pattern: str) -> list[str]:
    """Expand `{000..012}` and `{one,two}` as a shell does: the last group varies fastest.

    Raises:
        DataError: A range is descending, or braces have any other form.
    """
    group = GROUP.search(pattern)
    if group is None:
        if "{" in pattern or "}" in pattern:
            raise DataError(
                f"{pattern}: braces must hold a range ({{000..012}}) or a list ({{one,two}}),"
                " and must not be nested"
            )
        return [pattern]
    first, last, choices = group.groups()
    if first is not None and int(first) > int(last):
        raise DataError(
            f"{pattern}: {{{first}..{last}}} is descending", remedy=f"write {{{last}..{first}}}"
        )
    padded = any(len(end) > 1 and end[0] == "0" for end in (first, last) if end)
    width = max(len(first), len(last)) if padded else 0
    if first is None:
        words = choices.split(",")
    else:
        words = [f"{n:0{width}}" for n in range(int(first), int(last) + 1)]
    tails = expand_braces(pattern[group.end() :])
    return [
        f"{head}{word}{tail}"
        for head in expand_braces(pattern[: group.start()])
        for word in words
        for tail in tails
    ]


def find_shards(pattern: str, flag: str) -> tuple[Path, ...]:
    """List the tar files that braces and wildcards name, in order; each wildcard's are sorted.

    Raises:
        DataError: A shard is missing, named twice or compressed, or a wildcard matches nothing.
    """
    names = [pattern] if os.path.exists(pattern) else expand_braces(pattern)
    wild = [name for name in names if not os.path.exists(name) and glob.has_magic(name)]
    matches = {name: sorted(glob.glob(name)) for name in wild}
    paths = [path for name in names for path in matches.get(name, [name])]
    missing = [name for name in names if not matches.get(name, os.path.exists(name))]
    if missing:
        raise DataError(
            f"{flag} {pattern}: {len(missing)} of {len(names)} shards are missing,"
            f" the first is {missing[0]}"
        )
    in_order = sorted(paths)
    repeated = next((a for a, b in zip(in_order, in_order[1:], strict=False) if a == b), None)
    if repeated:
        raise DataError(f"{flag} {pattern} names the shard {repeated} twice")
    odd = next((path for path in paths if not path.endswith(ENDING)), None)
    if odd:
        raise DataError(
            f"{flag} {pattern}: {odd} is not an uncompressed {ENDING} file",
            remedy="decompress it, because compressed files cannot be read by offset",
        )
    return tuple(map(Path, paths))


def list_members(shards: Sequence[Path]) -> tuple[list[Found], Members]:
    """List the images of all shards, in order.

    Raises:
        DataError: A shard is not a tar file, is truncated, has no images, or has images that are
            links.
    """
    stamps = [_stamp(path) for path in shards]
    images: list[Found] = []
    places: list[tuple[int, int, int]] = []
    place = "\n".join(os.path.abspath(path) for path in shards)
    with Index("shards", place, _is_contents) as index:
        for number, contents in enumerate(_look_into(shards, stamps, index)):
            images += contents
            places += [(number, image.offset, image.size) for image in contents]
    return images, Members(
        tuple(zip(shards, stamps, strict=True)), np.array(places, dtype=np.int64).reshape(-1, 3)
    )


def _is_contents(record: Any) -> bool:
    """Whether a stored record is a list of `Found`."""
    return isinstance(record, list) and all(
        isinstance(image, list)
        and len(image) == len(Found._fields)
        and isinstance(image[0], str)
        and all(type(number) is int and number >= 0 for number in image[1:3])
        and (image[3] is None or type(image[3]) is int)
        for image in record
    )


def _stamp(shard: Path) -> Stamp:
    try:
        return read_stamp(shard)
    except OSError as error:
        raise DataError(f"{shard} cannot be read: {error}") from error


def _look_into(
    shards: Sequence[Path], stamps: Sequence[Stamp], index: Index
) -> Iterator[list[Found]]:
    """Yield the contents of each shard, from the index if recorded there."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(shards), AT_ONCE):
            names = map(str, shards[start : start + AT_ONCE])
            batch = list(zip(names, stamps[start : start + AT_ONCE], strict=True))
            contents = {name: index.look_up(name, stamp) for name, stamp in batch}
            unknown = [(name, stamp) for name, stamp in batch if contents[name] is None]
            scans = pool.map(scan_shard, [name for name, _ in unknown])
            for (name, stamp), images in zip(unknown, scans, strict=True):
                contents[name] = images
                index.store(name, stamp, images, len(images))
            for images in contents.values():
                yield [Found(*image) for image in images]


def scan_shard(path: str) -> list[Found]:
    """List the images of one tar file, from its headers alone.

    Raises:
        DataError: It is not a tar file, is truncated, has no images, or has images that are links.
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
                            remedy="pack the files themselves",
                        )
                    images.append(Found(name, member.offset_data, member.size, None))
            _check_end(tar, path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is not a tar file or is truncated ({error})", remedy="copy or pack it again"
        ) from error
    if not images:
        raise DataError(f"{path} holds no image (looked for {' '.join(EXTENSIONS)})")
    return [image._replace(label=labels.get(sample_of(image.name))) for image in images]


def sample_of(name: str) -> str:
    """The key of a webdataset sample: a member's name up to the first dot of its base name."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.partition(".")[0])


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> int:
    file = tar.extractfile(member)
    text = file.read().strip() if file else b""
    if not text.isdigit():
        raise DataError(f"{path}: {member.name} must hold a class number (got {text[:20]!r})")
    return int(text)


def _check_end(tar: tarfile.TarFile, path: str) -> None:
    """Check for the final block of zeros; tarfile accepts damage or a missing end as an end."""
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise DataError(
            f"{path} is damaged or truncated at byte {tar.offset}", remedy="copy or pack it again"
        )
