"""Images in tar files in the layout of webdataset, read by index through each member's offset.

A streaming reader yields images in shard order and shuffles within a buffer. Here every image has
an index, as in a folder; order, shares, crops and resuming are therefore identical to a folder's.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dino.data.ahead import Place
from dino.data.columns import Array, pack_array
from dino.data.decode import EXTENSIONS, Stored
from dino.data.index import Enter, Index, Stamp, pass_by
from dino.data.listing import HIDDEN, Passed, add, describe, is_hidden, is_passed, kind_of
from dino.data.remote import expect
from dino.data.shard_files import Shard
from dino.errors import DataError

LABEL = ".cls"
LONGEST_NUMBER = 32  # bytes of a .cls member that are read
# Kinds of headers that hold a text for the next header, which tarfile reads whole: a name, the
# target of a link, or attributes (three kinds).
TEXTS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, b"X")
LONGEST_TEXT, LARGEST_FILE = 2**16, 2**60  # bytes
AT_ONCE = 16  # shards scanned concurrently; on a network disk, most of the time is waiting


class Found(NamedTuple):
    """An image in a shard, as stored in an index; its label comes from a .cls member."""

    name: str
    offset: int
    size: int
    label: int | None


class Contents(NamedTuple):
    """What one shard holds, as stored in an index: its images, and what is passed over."""

    images: list[Found]
    passed: Passed


class Header(tarfile.TarInfo):
    """A header of a tar file whose size is checked before anything reads or skips that much."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Header:
        """As the parent's.

        Raises:
            tarfile.ReadError: Its size is negative, or too large for a header's text.
        """
        header = super().frombuf(buf, encoding, errors)
        most = LONGEST_TEXT if header.type in TEXTS else LARGEST_FILE
        if not 0 <= header.size <= most:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


@dataclass(frozen=True)
class Member:
    """One image in a shard."""

    shard: Shard
    stamp: Stamp
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        """SHARD/NAME, for errors; has the image's extension."""
        return f"{self.shard}/{self.name}"

    def read(self) -> bytes:
        """Read its content.

        Raises:
            DataError: The shard has changed since the run began, or its server does not answer.
            OSError: The shard cannot be read.
        """
        return self.shard.read(self.offset, self.size, self.stamp)


@dataclass(frozen=True, eq=False)
class Members:
    """Locations of N images.

    Attributes:
        shards: Each tar file and its stamp.
        places: Shard number, offset and size in bytes of each image, int64 (N, 3).
    """

    shards: tuple[tuple[Shard, Stamp], ...]
    places: np.ndarray | Array

    def member(self, index: int, name: str) -> Stored:
        """Image `index`, under the given name."""
        number, offset, size = self.places[index].tolist()
        shard, stamp = self.shards[number]
        return Member(shard, stamp, name, offset, size)

    @property
    def is_far(self) -> bool:
        """Whether they are behind URLs."""
        return any(shard.is_far for shard, _ in self.shards)

    def expect(self, indices: Sequence[int]) -> None:
        """Begin to fetch these images if they are behind URLs."""
        if self.is_far:
            places = self.places[np.asarray(indices, dtype=np.int64)].tolist()
            expect([Place(*self.shards[number], *where) for number, *where in places])

    def selected(self, indices: Sequence[int]) -> Members:
        """The images with the given indices, in the given order."""
        return replace(self, places=self.places[np.asarray(indices, dtype=np.int64)])

    def packed(self) -> Members:
        """The same places; many are in a file that loader processes share."""
        return replace(self, places=pack_array(self.places))


def read_stamps(shards: Sequence[Shard]) -> tuple[Stamp, ...]:
    """The stamp of each shard.

    Raises:
        DataError: A shard is missing, or its server does not answer.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return tuple(pool.map(lambda shard: shard.stamp(), shards))


def list_members(
    shards: Sequence[Shard], stamps: Sequence[Stamp], enter: Enter = pass_by
) -> tuple[list[Found], Members, Passed, dict[str, Stamp]]:
    """List the images of all shards, in order.

    Args:
        shards: The shards.
        stamps: Of each.
        enter: As of an index.

    Returns:
        The images, their places, what is passed over, and by place the stamps that are lasting.

    Raises:
        DataError: A shard is not a tar file, is truncated, has no images, or has images that are
            links; or its server does not answer.
    """
    images: list[Found] = []
    places: list[tuple[int, int, int]] = []
    passed: Passed = {}
    place = "\n".join(shard.place for shard in shards)
    worth = 0 if any(shard.is_far for shard in shards) else None
    with Index("shards", place, _is_contents, worth, enter=enter) as index:
        for number, (found, others) in enumerate(_look_into(shards, stamps, index)):
            images += found
            places += [(number, image.offset, image.size) for image in found]
            for kind, (count, first) in others.items():
                add(passed, kind, f"{shards[number]}/{first}", count)
    members = Members(
        tuple(zip(shards, stamps, strict=True)), np.array(places, dtype=np.int64).reshape(-1, 3)
    )
    known = index.stamps()
    return images, members, passed, {shard.place: known[str(shard)] for shard in shards}


def _is_contents(record: Any) -> bool:
    """Whether a stored record has the form of `Contents`."""
    if not isinstance(record, list) or len(record) != len(Contents._fields):
        return False
    images, passed = record
    return isinstance(images, list) and all(map(_is_found, images)) and is_passed(passed)


def _is_found(image: Any) -> bool:
    return (
        isinstance(image, list)
        and len(image) == len(Found._fields)
        and isinstance(image[0], str)
        and all(type(number) is int and number >= 0 for number in image[1:3])
        and (image[3] is None or type(image[3]) is int)
    )


def _look_into(
    shards: Sequence[Shard], stamps: Sequence[Stamp], index: Index
) -> Iterator[Contents]:
    """Yield the contents of each shard, from the index if recorded there."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for start in range(0, len(shards), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            batch = list(zip(shards[part], stamps[part], strict=True))
            contents = {shard: index.look_up(str(shard), stamp) for shard, stamp in batch}
            unknown = [(shard, stamp) for shard, stamp in batch if contents[shard] is None]
            scans = pool.map(lambda pair: scan_shard(*pair), unknown)
            for (shard, stamp), found in zip(unknown, scans, strict=True):
                contents[shard] = found
                index.store(str(shard), stamp, found, len(found.images))
            for images, passed in contents.values():
                yield Contents([Found(*image) for image in images], passed)


def scan_shard(shard: Shard, stamp: Stamp) -> Contents:
    """List the images of one tar file, from its headers alone, and count its other files.

    Raises:
        DataError: It is not a tar file, is truncated, has no images, or has images that are links;
            or its server does not answer.
    """
    images: list[Found] = []
    labels: dict[str, int] = {}
    passed: Passed = {}
    try:
        with (
            shard.open(stamp) as file,
            tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar,
        ):
            for member in _read_members(tar, stamp[0]):
                name = os.path.normpath(member.name)
                if any(map(is_hidden, name.split(os.sep))):
                    add(passed, HIDDEN, name)
                elif name.endswith(LABEL):
                    labels[sample_of(name)] = _read_label(tar, member, shard)
                elif not name.lower().endswith(EXTENSIONS):
                    add(passed, kind_of(name), name)
                else:
                    if not member.isreg() or member.issparse():
                        raise DataError(
                            f"{shard} holds {name} as a link or a sparse file",
                            remedy="pack the files themselves",
                        )
                    images.append(Found(name, member.offset_data, member.size, None))
            _check_end(tar, shard)
    except DataError:
        raise
    except Exception as error:  # noqa: BLE001 - tarfile raises anything on damaged headers
        raise DataError(
            f"{shard} is not a tar file or is truncated ({error})", remedy="copy or pack it again"
        ) from error
    if not images:
        others = f"; passed over: {describe(passed)}" if passed else ""
        raise DataError(f"{shard} holds no image (looked for {' '.join(EXTENSIONS)}{others})")
    labelled = [image._replace(label=labels.get(sample_of(image.name))) for image in images]
    return Contents(labelled, passed)


def _read_members(tar: tarfile.TarFile, size: int) -> Iterator[tarfile.TarInfo]:
    """Yield all but folders; a member that ends beyond the `size` bytes of the file is an error."""
    for member in tar:
        if not 0 <= member.size <= size - member.offset_data:  # extended headers change the size
            raise tarfile.ReadError(f"{member.name} has {member.size} bytes")
        if not member.isdir():
            yield member


def sample_of(name: str) -> str:
    """The key of a webdataset sample: a member's name up to the first dot of its base name."""
    folder, base = os.path.split(name)
    return os.path.join(folder, base.partition(".")[0])


def _read_label(tar: tarfile.TarFile, member: tarfile.TarInfo, shard: Shard) -> int:
    file = tar.extractfile(member) if member.isreg() and not member.issparse() else None
    text = file.read(LONGEST_NUMBER).strip() if file else b""
    if not text.isdigit():
        raise DataError(f"{shard}: {member.name} must hold a class number (got {text[:20]!r})")
    return int(text)


def _check_end(tar: tarfile.TarFile, shard: Shard) -> None:
    """Check for the final block of zeros; tarfile accepts damage or a missing end as an end."""
    file = tar.fileobj
    assert file is not None
    file.seek(tar.offset)
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise DataError(
            f"{shard} is damaged or truncated at byte {tar.offset}", remedy="copy or pack it again"
        )
