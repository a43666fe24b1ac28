"""A cache of what large folders and shards contain; only what changed is listed again.

An index file in the cache folder belongs to one folder (or set of shards). It stores one record per
sub-folder (or shard): a stamp and the contents. A record is valid while its stamp matches the disk.
Indexes only save time: if a file is missing, damaged or foreign, the disk is listed again; if the
cache is not writable, it is listed every time. Any index file may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

from dino.cache import find_cache_root, hold_lock, make_folder, read_own, write_own
from dino.files import atomic_write

logger = logging.getLogger(__name__)

VERSION = 2  # raise it whenever equal records would mean something else
WORTH = 20_000  # entries; below this, listing is fast enough without an index
# A folder may change again within one tick of the disk's clock (2 s on FAT, 1 s on some network
# disks) after it was listed. Anything that changed this recently is listed again next time.
FRESH = 3_000_000_000  # ns

Stamp = tuple[int, ...]
NO_STAMP: Stamp = ()  # matches no file
Enter = Callable[[], None]


def pass_by() -> None:
    """Wait for nobody."""


def read_stamp(path: str | Path) -> Stamp:
    """Size in bytes, then the times of last content and attribute change in ns since 1970.

    Copying programs cannot set back the second time. A folder's size carries no information and is
    0.

    Raises:
        OSError: There is no such file or folder.
    """
    return stamp_of(os.stat(path))


def stamp_of(status: os.stat_result) -> Stamp:
    """As `read_stamp`, of what the system said about a file or folder."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return size, status.st_mtime_ns, status.st_ctime_ns


def lasting(stamp: Stamp) -> Stamp:
    """A stamp, or the one that matches nothing if the next change might not show in it."""
    return stamp if max(stamp[1:]) < time.time_ns() - FRESH else NO_STAMP


class Index:
    """The records of one folder or set of shards, as a context in which they are read and updated.

    If several processes list the same large folder at once, one lists it; the others wait and read
    its records.
    """

    def __init__(
        self,
        kind: str,
        place: str,
        is_valid: Callable[[Any], bool],
        worth: int | None = None,
        *,
        enter: Enter = pass_by,
    ) -> None:
        """Read the stored records of `place`, an absolute path or several.

        Args:
            kind: What the records are about.
            place: What they belong to.
            is_valid: Whether the contents of a record have the right form.
            worth: Entries below which no index is written; `WORTH` if None. If 0, other processes
                wait before anything is listed.
            enter: Called before much is read or listed; what it raises ends that.
        """
        self.worth, self.enter = WORTH if worth is None else worth, enter
        self.place, self.key, self.is_valid = place, [VERSION, kind, place], is_valid
        digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).hexdigest()[:24]
        self.path = find_cache_root() / "index" / f"{kind}-{digest}.json"
        if self.path.exists():
            enter()
        self.known = self._read()
        self.records: dict[str, list[Any]] = {}
        self.found = 0
        self.doors = contextlib.ExitStack()
        self.locked = False

    def __enter__(self) -> Index:
        """Open nothing: most folders are small and leave no trace in the cache."""
        return self

    def look_up(self, name: str, stamp: Stamp) -> Any:
        """The contents of folder or shard `name` at this stamp; None if not recorded."""
        record = self.known.get(name)
        if self._fits(record, stamp):
            self.records[name] = record
            return record[1]
        if self.worth or self.locked:
            return None
        self._lock()
        return self.look_up(name, stamp)

    def _fits(self, record: Any, stamp: Stamp) -> TypeGuard[list[Any]]:
        return (
            isinstance(record, list)
            and len(record) == 2
            and record[0] == list(stamp)
            and self.is_valid(record[1])
        )

    def store(self, name: str, stamp: Stamp, found: Any, count: int) -> None:
        """Record the contents of `name` at this stamp; may wait for another process listing it.

        Args:
            name: The folder or shard.
            stamp: Taken before listing, so that a concurrent change is noticed.
            found: The contents, a JSON value.
            count: Number of entries in it.
        """
        self.records[name] = [list(lasting(stamp)), found]
        self.found += count
        if self.found >= self.worth and not self.locked:
            self._lock()

    def stamps(self) -> dict[str, Stamp]:
        """The stamps of all that was looked up or stored."""
        return {name: tuple(stamp) for name, (stamp, _) in self.records.items()}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the new records if there are enough of them, and release waiting processes."""
        with self.doors:
            if self.locked and error is None and self.records != self.known:
                self._write()

    def _lock(self) -> None:
        self.enter()
        self.locked = True
        logger.info(
            "listing %s; this takes a while, but will be fast next time",
            self.place.partition("\n")[0],
        )
        try:
            make_folder(self.path.parent)
            self.doors.enter_context(hold_lock(self.path.with_suffix(".lock")))
        except OSError as error:
            self._warn(error)
        self.known = self._read()

    def _read(self) -> dict[str, list[Any]]:
        """The records on disk; empty if the file is missing, damaged or for something else."""
        try:
            digest, _, body = read_own(self.path).partition(b"\n")
            if hashlib.sha256(body).hexdigest().encode() != digest:
                return {}
            stored = json.loads(body)
        except (OSError, ValueError, RecursionError):
            return {}
        match stored:
            case [self.key, dict(records)]:
                return records
        return {}

    def _write(self) -> None:
        body = json.dumps([self.key, self.records], separators=(",", ":")).encode()
        try:
            make_folder(self.path.parent)
            with atomic_write(self.path) as temporary:
                write_own(temporary, hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        text = "cannot write the index %s: %s; set DINO_CACHE_DIR to a writable folder of your own"
        logger.warning(text, self.path, error)
