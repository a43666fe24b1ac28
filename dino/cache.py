"""The cache folder, and files there that nobody else may have written.

Whoever can write a cached file decides what a run reads, or executes. So a folder must be this
user's and closed to others, a file too, and links are never followed.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import fcntl
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

logger = logging.getLogger(__name__)

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
NOT_OWN = "is a link, another user's, or writable by others"


def find_cache_root() -> Path:
    """$DINO_CACHE_DIR, else $XDG_CACHE_HOME/dino, else ~/.cache/dino."""
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("DINO_CACHE_DIR") or f"{shared}/dino").expanduser()


def make_folder(folder: Path) -> Path:
    """Make a folder that only this user can write.

    Raises:
        PermissionError: It is a link, another user's, or writable by others.
        OSError: It cannot be made.
    """
    folder.mkdir(mode=stat.S_IRWXU, parents=True, exist_ok=True)
    check_own_folder(folder)
    return folder


def check_own_folder(folder: Path) -> None:
    """Check that only this user can write a folder.

    Raises:
        PermissionError: It is a link, another user's, or writable by others.
        OSError: There is none.
    """
    _check(folder, folder.lstat(), stat.S_ISDIR)


def protect_compiled_code() -> None:
    """Let torch's compiler keep its code in a folder that only this user can write.

    It loads what it finds there, and by default that is a folder in /tmp that anybody can make
    first. A folder that the user has set stays.
    """
    if VARIABLE in os.environ:
        return
    folder = Path(tempfile.gettempdir()) / f"dino_compiled_{os.geteuid()}"
    try:
        make_folder(folder)
    except OSError as error:
        logger.warning("compiled code is not kept: %s; set %s to a folder", error, VARIABLE)
        folder = Path(tempfile.mkdtemp(prefix="dino_compiled_"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[VARIABLE] = str(folder)


def check_owner(folder: Path) -> None:
    """Check that a folder of data is no link, and this user's or the system's.

    Raises:
        PermissionError: It is not.
    """
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.geteuid()):
        raise PermissionError(errno.EACCES, "is a link or another user's", str(folder))


def read_own(path: Path) -> bytes:
    """Read a file that only this user can write; errors are those of `open_own`."""
    with open_own(path) as file:
        return file.read()


def open_own(path: Path) -> BinaryIO:
    """Open a file that only this user can write, for reading.

    Raises:
        PermissionError: It is a link, another user's, or writable by others.
        OSError: It cannot be read.
    """
    # A pipe must not be waited for before it is refused.
    file = open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")
    try:
        _check(path, os.fstat(file.fileno()), stat.S_ISREG)
    except OSError:
        file.close()
        raise
    return file


def write_own(path: Path, content: bytes) -> None:
    """Write a new file that only this user can write; errors are those of `create_own`."""
    with create_own(path) as file:
        file.write(content)


def create_own(path: Path) -> BinaryIO:
    """Open a new file that only this user can write, for reading and writing.

    Raises:
        OSError: It exists, or cannot be written.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    return open(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR), "w+b")


@contextlib.contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Let one process at a time pass; on a disk without locks, all of them.

    The system frees the lock even if the process is killed, so it is never stale.

    Raises:
        OSError: The file is a link, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags, stat.S_IRUSR | stat.S_IWUSR), "rb") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _check(path: Path, status: os.stat_result, is_kind: Callable[[int], bool]) -> None:
    is_own = status.st_uid == os.geteuid() and not status.st_mode & OTHERS_WRITE
    if not is_own or not is_kind(status.st_mode):
        raise PermissionError(errno.EACCES, NOT_OWN, str(path))
