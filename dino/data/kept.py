"""What large places hold, listed by one process of a host; the others map what it wrote.

A file in the temporary folder belongs to one place (a folder, shards, tables, or a list of images)
as one host sees it. It holds names, labels and positions of all images, and the stamps of what was
listed. While those match the disk, a process that opens the place lists nothing, and has no copy of
its own.

No host replaces another's file, even in a folder that they share, because that would end the
processes that map it. Any file may be deleted at any time: processes that run have it open, and the
next one lists the place again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino.cache import check_own_folder, create_own, hold_lock, make_folder, open_own
from dino.data.columns import (
    MappedFile,
    Names,
    Numbers,
    find_ends,
    is_large,
    join_names,
    open_arrays,
    write_arrays,
)
from dino.data.image_source import ImageSource
from dino.data.index import NO_STAMP, Enter, Stamp, read_stamp
from dino.data.shards import Members
from dino.files import atomic_write

logger = logging.getLogger(__name__)

VERSION = 1  # raise it whenever equal files would mean something else
LENGTH, DIGEST = 16, 64  # characters at the end of a file: length of its description, SHA-256


class Listed(Exception):
    """Another process has listed the images."""

    def __init__(self, source: ImageSource) -> None:
        """Store the images."""
        super().__init__()
        self.source = source


def list_once(
    kind: str,
    root: Path,
    place: Sequence[str],
    list_images: Callable[[Enter], tuple[ImageSource, Mapping[str, Stamp]]],
    find_stamp: Callable[[str], Stamp] = read_stamp,
) -> ImageSource:
    """List the images of a place, unless a process of this host did, and what it read is unchanged.

    Args:
        kind: What the place is.
        root: The source's.
        place: All that decides what is listed, apart from the disk.
        list_images: Returns the images, and the stamps of all files and folders that decide which
            they are, by path, taken before they were read. It calls its argument as soon as it
            knows that they are many, which may wait for another process and end the listing.
        find_stamp: The present stamp of such a path.

    Returns:
        The images; the members of shards may lack the shards.
    """
    kept = KeptFile(kind, root, place, find_stamp)
    source = kept.read()
    if source is not None:
        return source
    with contextlib.ExitStack() as doors:
        try:
            source, stamps = list_images(lambda: kept.enter(doors))
        except Listed as listed:
            return listed.source
        return kept.write(source, stamps) if is_large(len(source)) else source


class KeptFile:
    """The file of one place."""

    def __init__(
        self, kind: str, root: Path, place: Sequence[str], find_stamp: Callable[[str], Stamp]
    ) -> None:
        """Name the file, with the arguments of `list_once`; nothing is read yet."""
        self.root, self.find_stamp = root, find_stamp
        self.key = [VERSION, os.uname().nodename, kind, *place]
        digest = hashlib.sha256(json.dumps(self.key).encode()).hexdigest()[:24]
        self.path = find_folder() / f"{kind}-{digest}"
        self.entered = False

    def enter(self, doors: contextlib.ExitStack) -> None:
        """Wait until no other process lists the place, and keep others waiting until `doors` close.

        Raises:
            Listed: A process has listed it.
        """
        if self.entered:
            return
        self.entered = True
        try:
            make_folder(self.path.parent)
            doors.enter_context(hold_lock(self.path.with_suffix(".lock")))
        except OSError as error:
            self._warn(error)
        source = self.read()
        if source is not None:
            raise Listed(source)

    def read(self) -> ImageSource | None:
        """The images, or None if the file is missing, damaged or foreign, or the disk changed."""
        try:
            check_own_folder(self.path.parent)
            with open_own(self.path) as opened:
                file = MappedFile(os.dup(opened.fileno()))
            stored = _read_description(file)
            return _build_source(self.root, file, stored) if self._is_valid(stored) else None
        except (OSError, ValueError, KeyError):
            return None

    def write(self, source: ImageSource, stamps: Mapping[str, Stamp]) -> ImageSource:
        """Write the images, and return them as the file has them."""
        if NO_STAMP in stamps.values():  # the disk may change without a trace
            return source.packed()
        try:
            with atomic_write(self.path, alone=True) as draft:
                draft.unlink(missing_ok=True)
                _write_source(draft, source, {"key": self.key, "stamps": stamps})
        except OSError as error:
            self._warn(error)
        return self.read() or source.packed()

    def _is_valid(self, stored: Mapping[str, Any]) -> bool:
        return bool(stored["key"] == self.key) and all(
            list(self.find_stamp(path)) == stamp for path, stamp in stored["stamps"].items()
        )

    def _warn(self, error: OSError) -> None:
        text = "each process lists the images: %s cannot be written: %s; set TMPDIR"
        logger.warning(text, self.path, error)


def find_folder() -> Path:
    """The folder of these files, which only this user can write."""
    try:
        above = tempfile.gettempdir()
    except OSError:  # no folder can be written; small places need none
        above = "/tmp"
    return Path(above) / f"dino_names_{os.geteuid()}"


def _write_source(path: Path, source: ImageSource, more: Mapping[str, Any]) -> None:
    """Write arrays, then a description in JSON, then its length and the SHA-256 of all that."""
    arrays = {
        "text": np.frombuffer(join_names(source.names), np.uint8),
        "ends": find_ends(source.names),
    }
    if source.labels is not None:
        arrays["labels"] = np.array(source.labels, np.int64)
    if source.members is not None:
        arrays["places"] = np.asarray(source.members.places)
    with create_own(path) as file:
        description = {
            **more,
            "arrays": write_arrays(file, arrays),
            "classes": source.classes,
            "origin": source.origin,
            "passed": source.passed,
        }
        text = json.dumps(description).encode()
        file.write(text + f"{len(text):{LENGTH}}".encode())
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            digest = hashlib.sha256(content).hexdigest()
        file.write(digest.encode())


def _read_description(file: MappedFile) -> dict[str, Any]:
    """What a file says about itself.

    Raises:
        ValueError: It is damaged.
    """
    content = memoryview(file.memory)
    body, digest = content[:-DIGEST], bytes(content[-DIGEST:])
    if hashlib.sha256(body).hexdigest().encode() != digest:
        raise ValueError("damaged")
    length = int(bytes(body[-LENGTH:]))
    stored: dict[str, Any] = json.loads(bytes(body[-LENGTH - length : -LENGTH]))
    return stored


def _build_source(root: Path, file: MappedFile, stored: Mapping[str, Any]) -> ImageSource:
    arrays = open_arrays(file, stored["arrays"])
    return ImageSource(
        root=root,
        names=Names(arrays["text"], arrays["ends"]),
        labels=Numbers(arrays["labels"]) if "labels" in arrays else None,
        classes=tuple(stored["classes"]),
        members=Members((), arrays["places"]) if "places" in arrays else None,
        origin=stored["origin"],
        passed={kind: (count, first) for kind, (count, first) in stored["passed"].items()},
    )
