"""An output folder belongs to one run at a time: rank 0 holds the file `.dino.lock` in it.

The kernel's lock (fcntl) ends with the process, also after kill -9, but not every file system
carries it from host to host. So a thread also rewrites the file's line every 10 s, and the file's
age tells whether its run is alive. A folder is free if
the kernel's lock can be taken, and the run that wrote the line

- was a process of this host that is gone, or
- was an earlier attempt of the same job (restarted by torchrun, requeued by Slurm), or
- has been silent for 60 s.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import io
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from dino.errors import OptionError
from dino.runtime.members import GONE, read_namespace, read_state

logger = logging.getLogger(__name__)

LOCK_FILE = ".dino.lock"
BEAT_EVERY = 10.0  # seconds between two signs of life
SILENT_FOR = 60.0  # seconds without one after which a run counts as dead
TAKEN = (errno.EACCES, errno.EAGAIN)
# Identifier and attempt of a job that its launcher starts again.
JOBS = (
    ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"),
    ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"),
)
NO_JOB = ("", "none")  # torchrun's default identifier is "none"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The process that holds a folder.

    Attributes:
        host: Its host's name, which containers may share.
        namespace: Where its number is valid.
        pid: Its number there.
        started: When it started, in clock ticks since the host did; 0 if the system cannot say.
        jobs: The attempt of each job that it belongs to, by the job's name.
    """

    host: str
    namespace: str
    pid: int
    started: int
    jobs: Mapping[str, int]

    def is_gone(self) -> bool:
        """Whether this was a process that this one's kernel counts, and is no longer."""
        if (self.host, self.namespace) != (socket.gethostname(), read_namespace()):
            return False
        started = _read_start(self.pid)
        return started is None or (0 != started != self.started != 0)

    def precedes(self, other: Owner) -> bool:
        """Whether this was an earlier attempt of the other's job."""
        return any(self.jobs.get(job, attempt) < attempt for job, attempt in other.jobs.items())


class FolderLock:
    """The lock of one folder, taken until it is released."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        Raises:
            OptionError: Another run holds it, or the folder cannot be written to.
        """
        self.path, self.owner, self.ended = folder / LOCK_FILE, _describe_self(), threading.Event()
        try:
            self.file, locked = _open_locked(self.path)
            self._take(locked)
        except OSError as error:
            raise OptionError(f"`output_dir` {folder} cannot be written to: {error}") from error
        self.beats = threading.Thread(target=self._beat, daemon=True, name="folder lock")
        self.beats.start()

    def check(self) -> None:
        """Check that no other run has taken the folder, for example while this one was frozen.

        Raises:
            OptionError: Another run has.
        """
        with contextlib.suppress(FileNotFoundError):
            same = os.path.samestat(os.fstat(self.file.fileno()), self.path.stat())
            if not same or _read_owner(self.file) != self.owner:
                raise OptionError(
                    f"`output_dir` {self.path.parent} was taken over by another run, because this "
                    f"one gave no sign of life for {SILENT_FOR:.0f} s",
                    remedy="nothing more is written",
                )

    def release(self) -> None:
        """Give the folder back."""
        if self.owner.pid != os.getpid():  # a fork of the process that holds it
            return
        self.ended.set()
        self.beats.join()
        with contextlib.suppress(OSError, OptionError):
            self.check()
            self.path.unlink()
        self.file.close()

    def _take(self, locked: bool | None) -> None:
        other = _read_owner(self.file)
        if locked is None:
            logger.warning(
                "%s: this file system has no locks; another run is recognized by its heartbeat "
                "alone",
                self.path,
            )
        age = _read_clock(self.path.parent) - os.fstat(self.file.fileno()).st_mtime
        if not _is_free(other, self.owner, locked=locked, age=age):
            self.file.close()
            raise _held(self.path.parent, other, age)
        self._write()

    def _write(self) -> None:
        moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
        line = json.dumps({**dataclasses.asdict(self.owner), "alive_utc": moment}).encode() + b"\n"
        os.pwrite(self.file.fileno(), line, 0)
        os.ftruncate(self.file.fileno(), len(line))
        os.fsync(self.file.fileno())

    def _beat(self) -> None:
        while not self.ended.wait(BEAT_EVERY):
            with contextlib.suppress(OSError):  # a full disk: the kernel's lock remains
                if _read_owner(self.file) == self.owner:
                    self._write()


# The kernel's lock does not separate the runs of one process.
_held_here: dict[Path, FolderLock] = {}
_door = threading.Lock()


@contextlib.contextmanager
def hold_folder(folder: str | Path, *, first: bool) -> Iterator[None]:
    """Hold an output folder inside the block.

    Args:
        folder: An existing folder.
        first: Whether this is rank 0; other processes do nothing.

    Raises:
        OptionError: Another run holds it, or it cannot be written to.
    """
    if not first:
        yield
        return
    place = Path(folder).resolve()
    with _door:
        if place in _held_here:
            raise _held(Path(folder), _describe_self(), 0.0)
        lock = _held_here[place] = FolderLock(Path(folder))
    try:
        yield
    finally:
        del _held_here[place]
        lock.release()


def check_held(folder: Path) -> None:
    """Check that a folder of this process is still its own; a folder that it does not hold passes.

    Raises:
        OptionError: Another run has taken it.
    """
    lock = _held_here.get(folder.resolve())
    if lock is not None:
        lock.check()


def _is_free(other: Owner | None, own: Owner, *, locked: bool | None, age: float) -> bool:
    if locked is False:
        return False
    ended = other is None or other == own or other.is_gone() or other.precedes(own)
    return ended or age > SILENT_FOR


def _held(folder: Path, other: Owner | None, age: float) -> OptionError:
    who = f"pid {other.pid} on host {other.host}" if other else "a process that is just starting"
    return OptionError(
        f"`output_dir` {folder} belongs to another run: {who}, last sign of life "
        f"{max(age, 0):.0f} s ago",
        value=str(folder),
        remedy=f"name another folder, or wait until that run ends (if it was killed on another "
        f"host, {SILENT_FOR:.0f} s)",
    )


def _describe_self() -> Owner:
    jobs = {
        f"{name}={os.environ[name]}": int(os.environ.get(attempt) or 0)
        for name, attempt in JOBS
        if os.environ.get(name, "") not in NO_JOB
    }
    host, pid = socket.gethostname(), os.getpid()
    start = _read_start(pid) or 0
    return Owner(host=host, namespace=read_namespace(), pid=pid, started=start, jobs=jobs)


def _open_locked(path: Path) -> tuple[io.FileIO, bool | None]:
    """Open and lock the file that has this name then: a run that ends removes its own."""
    while True:
        file = io.FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "r+")
        locked = _lock(file)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, locked
        file.close()


def _lock(file: io.FileIO) -> bool | None:
    """Try to take the kernel's lock; None if the file system has none."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in TAKEN else None
    return True


def _read_owner(file: io.FileIO) -> Owner | None:
    """Read the first line; None if there is none of ours."""
    try:
        values = json.loads(os.pread(file.fileno(), 4096, 0).split(b"\n")[0])
        jobs = {str(name): int(attempt) for name, attempt in dict(values["jobs"]).items()}
        return Owner(
            host=str(values["host"]),
            namespace=str(values["namespace"]),
            pid=int(values["pid"]),
            started=int(values["started"]),
            jobs=jobs,
        )
    except (ValueError, KeyError, TypeError):
        return None


def _read_clock(folder: Path) -> float:
    """The time of the file system: the clocks of two hosts may differ."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def _read_start(pid: int) -> int | None:
    """When a process of this host started, in clock ticks; 0 if unknown, None if it has ended."""
    found = read_state(pid)
    if found is None:
        return 0 if not Path("/proc/self/stat").exists() else None
    state, start = found
    return None if state in GONE else int(start)
