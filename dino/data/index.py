"""What large folders and shards hold, remembered between runs: listed once, and again only where something changed.

An index file lies in the cache folder and belongs to one folder (or set of shards). It holds records: of each folder
(or shard) a stamp and what was found there. A record is believed while the stamp is what the disk says now. Indexes are
a matter of speed alone: a missing, damaged or foreign file means to look again, a cache that cannot be written to means
to look each time, and any of the files may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from dino.files import atomic_write

logger = logging.getLogger(__name__)

VERSION = 1  # raise it whenever equal records would mean something else
WORTH = 20_000  # entries; fewer are looked up quicker than explained
# A folder may change again within one tick of a disk's clock (2 s on FAT, 1 s on some network disks), after it was
# listed; what changed so lately is listed again next time.
FRESH = 3_000_000_000  # ns

Stamp = tuple[int, ...]
NO_STAMP: Stamp = ()  # what no file has


def find_cache_root() -> Path:
    """$DINO_CACHE_DIR, else $XDG_CACHE_HOME/dino, else ~/.cache/dino."""
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DINO_CACHE_DIR") or f"{shared}/dino").expanduser()


def read_stamp(path: str | Path) -> Stamp:
    """Size in bytes, and the times of the last change of content and of attributes in ns since 1970.

    The second time is one that copying programs cannot set back. A folder's size is left out (0): it says nothing more.

    Raises:
        OSError: There is no such file or folder.
    """
    found = os.stat(path)
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Index:
    """The records of one folder or set of shards; a context in which they are looked up and renewed.

    Processes that list the same large folder at once do it once: one goes on, the others wait and read what it found.
    """

    def __init__(self, kind: str, place: str) -> None:
        """Read what is known of `place`, an absolute path or several."""
        self.place, self.key = place, [VERSION, kind, place]
        digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        self.path = find_cache_root() / "index" / f"{kind}-{digest}.json"
        self.known = self._read()
        self.records: dict[str, list[Any]] = {}
        self.found = 0
        self.doors = contextlib.ExitStack()
        self.locked = False

    def __enter__(self) -> Index:
        """Nothing to open: most folders are small and leave no trace in the cache."""
        return self

    def look_up(self, name: str, stamp: Stamp) -> Any:
        """What was found in folder or shard `name` when it had this stamp; None if that is not known."""
        record = self.known.get(name)
        if record is None or tuple(record[0]) != stamp:
            return None
        self.records[name] = record
        return record[1]

    def store(self, name: str, stamp: Stamp, found: Any, count: int) -> None:
        """Remember what was found in `name` when it had this stamp; may wait for another process that lists it too.

        Args:
            name: Of the folder or shard.
            stamp: From before it was looked into, so that a change meanwhile is noticed.
            found: A JSON value.
            count: Entries in it.
        """
        lasting = max(stamp[1:]) < time.time_ns() - FRESH
        self.records[name] = [stamp if lasting else NO_STAMP, found]
        self.found += count
        if self.found >= WORTH and not self.locked:
            self._lock()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what is new, if it was worth it, and let waiting processes go on."""
        with self.doors:
            if self.locked and error is None and self.records != self.known:
                self._write()

    def _lock(self) -> None:
        self.locked = True
        logger.info(
            "listing %s, which takes a while; the next time it is quick",
            self.place.partition("\n")[0],
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # The system frees this lock even when the process is killed, so none is ever stale.
            door = self.doors.enter_context(self.path.with_suffix(".lock").open("w"))
            fcntl.flock(door, fcntl.LOCK_EX)
        except OSError as error:
            logger.warning(
                "no index is kept in %s: %s; set DINO_CACHE_DIR to a writable folder",
                self.path,
                error,
            )
        self.known = self._read()

    def _read(self) -> dict[str, list[Any]]:
        """The records on disk; none where the file is missing, damaged or about something else."""
        try:
            digest, _, body = self.path.read_bytes().partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != digest:
                return {}
            key, records = json.loads(body)
        except (OSError, ValueError):
            return {}
        return dict(records) if key == self.key else {}

    def _write(self) -> None:
        body = json.dumps([self.key, self.records], separators=(",", ":")).encode()
        try:
            with atomic_write(self.path) as temporary:
                temporary.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        except OSError as error:
            logger.warning(
                "no index is kept in %s: %s; set DINO_CACHE_DIR to a writable folder",
                self.path,
                error,
            )


def list_files(root: Path, endings: tuple[str, ...]) -> Iterator[str]:
    """Names of all files below `root` that end so (in either case), relative to it.

    Each folder's own files stand before those of the folders in it; both are sorted. Links are followed.

    Args:
        root: The folder.
        endings: In lower case, with the dot.

    Raises:
        OSError: A folder cannot be read.
    """
    with Index("folder", f"{os.path.abspath(root)}\n{' '.join(endings)}") as index:
        yield from _walk(root, "", endings, index)


def _walk(root: Path, folder: str, endings: tuple[str, ...], index: Index) -> Iterator[str]:
    path = os.path.join(root, folder)
    stamp = read_stamp(path)
    known = index.look_up(folder, stamp)
    if known is None:
        known = _list(path, endings)
        index.store(folder, stamp, known, sum(map(len, known)))
    files, folders = known
    yield from (os.path.join(folder, name) for name in files)
    for name in folders:
        yield from _walk(root, os.path.join(folder, name), endings, index)


def _list(path: str, endings: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Files that end so and folders right in a folder, each sorted."""
    files, folders = [], []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir():
                folders.append(entry.name)
            elif entry.name.lower().endswith(endings):
                files.append(entry.name)
    return sorted(files), sorted(folders)
