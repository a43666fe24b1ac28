"""Images of shards behind URLs, kept on a disk of this host up to a limit.

Each shard has one sparse file, in which an image lies where it lies in the shard. In place of its
tar header there is a mark and a checksum. So an image is one open and one read, several processes
need no locks, and whatever a kill, a full disk or damage leaves is noticed and fetched again.

When the cache is full, the shards that nobody has read for `IDLE` go, the oldest first. If there
are none, the others stay and new images are not kept: an epoch reads every image once, so the least
recently used image would be the one that is needed next.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import stat
import time
from pathlib import Path

from dino.cache import find_cache_root, make_folder
from dino.data.index import Stamp
from dino.errors import DataError

logger = logging.getLogger(__name__)

VARIABLE, USUAL = "DINO_CACHE_LIMIT", "20G"
UNITS = {"M": 10**6, "G": 10**9, "T": 10**12}
MARK, DIGEST = b"dino", 16  # what is before an image, and the bytes of its checksum
IDLE, LOOK = 7200.0, 60.0  # s
STEP = 2**24  # bytes that a process may write before it counts what the cache holds
SPARE = 0.05  # share of the disk that stays free: checkpoints may need it
BLOCK = 512  # bytes in which the system counts a sparse file


def read_limit() -> int:
    """The most bytes that the cache holds: $DINO_CACHE_LIMIT, such as 500G; 0 turns it off.

    Raises:
        DataError: It is no size.
    """
    text = os.environ.get(VARIABLE) or USUAL
    size = re.fullmatch(r"(\d+(?:\.\d+)?)([MGT]?)", text)
    if not size or (not size[2] and float(size[1])):
        raise DataError(f"{VARIABLE} must be a size such as 500G, or 0 (got {text})")
    return int(float(size[1]) * UNITS.get(size[2], 0))


class ImageCache:
    """The images that are on this host."""

    def __init__(self, limit: int) -> None:
        """Use the cache folder, unless the limit is 0 bytes or the folder cannot be used."""
        self.folder, self.limit = find_cache_root() / "images", limit
        self.room, self.next_look = 0, 0.0
        self.touched: dict[Path, float] = {}
        if limit:
            try:
                make_folder(self.folder)
            except OSError as error:
                self._give_up(error)

    def read(self, name: str, stamp: Stamp, offset: int, size: int) -> bytes | None:
        """Return the bytes at `offset` of shard `name`; None if they are not there or damaged."""
        if not self.limit:
            return None
        path, start = self._path(name, stamp), offset - len(MARK) - DIGEST
        try:
            with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
                record = os.pread(file.fileno(), offset - start + size, start)
            self._touch(path)
        except OSError:
            return None
        content = record[offset - start :]
        return content if record == _seal(content) and len(content) == size else None

    def write(self, name: str, stamp: Stamp, offset: int, content: bytes) -> None:
        """Keep these bytes if there is room."""
        if not self.limit or not self._has_room(len(content)):
            return
        record = _seal(content)
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
        try:
            path = self._path(name, stamp)
            with open(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR), "wb") as file:
                os.pwrite(file.fileno(), record, offset + len(content) - len(record))
        except OSError as error:
            self._give_up(error)

    def _path(self, name: str, stamp: Stamp) -> Path:
        key = hashlib.sha256(f"{name} {stamp}".encode()).hexdigest()[:32]
        return self.folder / f"{key}.images"

    def _touch(self, path: Path) -> None:
        """Note now and then that a shard is in use; its time of change is when."""
        now = time.time()
        if self.touched.get(path, 0.0) < now - IDLE / 4:
            self.touched[path] = now
            os.utime(path)

    def _has_room(self, size: int) -> bool:
        if size > self.room and time.monotonic() >= self.next_look:
            self.room = self._make_room()
            self.next_look = time.monotonic() + (LOOK if size > self.room else 0.0)
        if size > self.room:
            return False
        self.room -= size
        return True

    def _make_room(self) -> int:
        """Remove what nobody uses, as far as necessary; the bytes that may be written now."""
        shards = sorted(
            (status.st_mtime, status.st_blocks * BLOCK, path) for path, status in self._list()
        )
        used, step = sum(size for _, size, _ in shards), min(STEP, self.limit // 8)
        disk = os.statvfs(self.folder)
        free = (disk.f_bavail - SPARE * disk.f_blocks) * disk.f_frsize
        for changed, size, path in shards:
            if min(self.limit - used, free) >= step or changed > time.time() - IDLE:
                break
            with contextlib.suppress(OSError):  # another process was first
                path.unlink()
            used, free = used - size, free + size
        return max(0, int(min(self.limit - used, free, step)))

    def _list(self) -> list[tuple[Path, os.stat_result]]:
        found = []
        for path in self.folder.glob("*.images"):
            with contextlib.suppress(OSError):  # removed meanwhile
                found.append((path, path.lstat()))
        return found

    def _give_up(self, error: OSError) -> None:
        self.limit = 0
        logger.warning("images are no longer kept in %s: %s", self.folder, error)


def _seal(content: bytes) -> bytes:
    return MARK + hashlib.blake2b(content, digest_size=DIGEST).digest() + content
