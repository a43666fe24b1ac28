"""How the processes of one run find each other in a store that others use, too.

torchrun keeps its store when it restarts the processes, and a port may belong to another job.
Rank 0 therefore draws a name for the run, and all keys of the run are under it. To be told the
name, a process asks under a number that nobody has used before, so that no answer is stale.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dino.errors import OptionError
from dino.runtime.launch import Launch
from dino.runtime.members import Member

JOIN_TIMEOUT = timedelta(minutes=30)  # hosts of one job may start at different times
LOOK_EVERY = 0.1  # seconds between two looks of a process that waits for others
RUNNING = "running"  # key: the name of the run whose processes joined last
REMEDY = "set MASTER_ADDR and MASTER_PORT, or `dist_url`, to a meeting point of this job alone"


@dataclass(frozen=True)
class Meeting:
    """Two connections of this process to the keys of its run, since a blocking call occupies one.

    Attributes:
        store: For the main thread and the collectives.
        watch: For the thread that watches the other processes.
        line: The connection to the store's server; None if there is no server, or on systems
            without /proc.
    """

    store: Store
    watch: Store
    line: socket.socket | None = None

    def is_over(self) -> bool:
        """Whether the store's server has ended, found out without a call that would print why."""
        if self.line is None:
            return False
        try:
            return not self.line.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True


def write(store: Store, key: str, value: str) -> None:
    """Set a key that other processes test with `is_written`."""
    store.set(key, value)
    store.add(f"{key} written", 1)


def is_written(store: Store, key: str) -> bool:
    """Whether a key is set, without waiting; counts, because older torch's stores lack `check`."""
    count: int = store.add(f"{key} written", 0)
    return count > 0


def read_member(store: Store, rank: int) -> Member:
    """Return the process that joined a run as this rank."""
    return Member.parse(store.get(f"member_{rank}").decode())


# Connections that this process has opened. Later runs of a program use the first one's, because a
# server that closed with one run would also end the next one's.
_opened: dict[tuple[Any, ...], Meeting] = {}


def meet(launch: Launch, dist_url: str) -> Meeting:
    """Join the other processes of a run.

    Raises:
        OptionError: The meeting point is unusable or another job's, or processes are missing.
    """
    key = (launch, dist_url, os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))
    if key not in _opened:
        _opened[key] = _open(launch, dist_url)
    opened = _opened[key]
    try:
        name = _join(opened.store, launch)
    except RuntimeError as error:
        raise _unusable(launch, dist_url, error) from error
    return Meeting(PrefixStore(name, opened.store), PrefixStore(name, opened.watch), opened.line)


def _open(launch: Launch, dist_url: str) -> Meeting:
    try:
        store = _open_store(launch, dist_url)
        # A file's store blocks nobody, and one that is opened twice removes the file too early.
        watch = store if dist_url.startswith("file:") else _open_store(launch, dist_url)
        return Meeting(store, watch, _find_line(dist_url))
    except (ValueError, RuntimeError) as error:
        raise _unusable(launch, dist_url, error) from error


def _open_store(launch: Launch, dist_url: str) -> Store:
    store: Store
    store, _, _ = next(rendezvous(dist_url, launch.rank, launch.world_size, timeout=JOIN_TIMEOUT))
    return store


def _find_line(dist_url: str) -> socket.socket | None:
    """Return a connection of this process to the store's server, to be looked at only."""
    port = urlsplit(dist_url).port or int(os.environ.get("MASTER_PORT", 0))
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.stat(int(name)).st_mode):
                    with socket.socket(fileno=os.dup(int(name))) as found:
                        if found.getpeername()[1:2] == (port,):  # a text for local sockets
                            return found.dup()
    return None


def _unusable(launch: Launch, dist_url: str, error: Exception) -> OptionError:
    reason = str(error).partition("\n")[0]  # the rest is where in torch
    taken = "EADDRINUSE" in reason or "address already in use" in reason.lower()
    return OptionError(
        f"`dist_url` {dist_url}: {launch.world_size} processes cannot meet there: {reason}",
        value=dist_url,
        remedy=REMEDY if taken else None,
    )


def _join(store: Store, launch: Launch) -> str:
    """Return the run's name once all processes have joined it.

    None may leave earlier: rank 0 may hold the store. torch used to wait like this and no longer
    does (TORCH_DIST_INIT_BARRIER).
    """
    if launch.rank == 0:
        name = uuid.uuid4().hex
        _enter(store, name, 0)
        _admit(store, name, launch.world_size)
        write(store, RUNNING, name)
    else:
        name = _ask(store, launch.rank)
        _enter(store, name, launch.rank)
    ranks = range(launch.world_size)
    PrefixStore(name, store).wait([f"member_{rank}" for rank in ranks], JOIN_TIMEOUT)
    return name


def _enter(store: Store, name: str, rank: int) -> None:
    """Join a run as a rank.

    Raises:
        OptionError: Another process has this rank.
    """
    run, me = PrefixStore(name, store), Member.here()
    if run.add(f"joined_{rank}", 1) > 1:
        raise OptionError(
            f"rank {rank} is {read_member(run, rank).place} and also {me.place}", remedy=REMEDY
        )
    run.set(f"member_{rank}", str(me))


def _admit(store: Store, name: str, world_size: int) -> None:
    """Tell every process that asks the run's name, until all have joined.

    Raises:
        OptionError: Some did not ask in time.
    """
    run, answered, missing = PrefixStore(name, store), set[str](), [*range(1, world_size)]
    give_up = time.monotonic() + JOIN_TIMEOUT.total_seconds()
    while missing and time.monotonic() < give_up:
        for rank in missing:
            asked = store.get(f"ask_{rank}").decode() if is_written(store, f"ask_{rank}") else ""
            if asked and asked not in answered:
                write(store, f"answer_{asked}", name)
                answered.add(asked)
        missing = [rank for rank in missing if not run.add(f"joined_{rank}", 0)]
        time.sleep(LOOK_EVERY * bool(missing))
    if missing:
        raise OptionError(
            f"ranks {', '.join(map(str, missing))} did not join in {JOIN_TIMEOUT}",
            remedy="look at what they or their launcher printed",
        )


def _ask(store: Store, rank: int) -> str:
    """Return the name of the run, as rank 0 tells it.

    Raises:
        OptionError: Another run is in progress here, or rank 0 did not join in time.
    """
    mine = uuid.uuid4().hex
    write(store, f"ask_{rank}", mine)
    others = _OtherRun(store)
    give_up = time.monotonic() + JOIN_TIMEOUT.total_seconds()
    while not is_written(store, f"answer_{mine}"):
        others.check()
        if time.monotonic() > give_up:
            raise OptionError(f"rank 0 did not join in {JOIN_TIMEOUT}", remedy=REMEDY)
        time.sleep(LOOK_EVERY)
    return str(store.get(f"answer_{mine}").decode())


class _OtherRun:
    """Notices that the store belongs to a run that is in progress: its rank 0 beats."""

    def __init__(self, store: Store) -> None:
        self.store, self.name, self.beats = store, "", 0

    def check(self) -> None:
        """Look once.

        Raises:
            OptionError: There is such a run.
        """
        if not is_written(self.store, RUNNING):
            return
        name = self.store.get(RUNNING).decode()
        run = PrefixStore(name, self.store)
        beats = run.add("beat_0", 0)
        if name != self.name:
            self.name, self.beats = name, beats
        elif beats > self.beats + 1:
            raise OptionError(
                f"another job is running at this meeting point, {read_member(run, 0).place}",
                remedy=REMEDY,
            )
