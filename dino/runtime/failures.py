"""One process's failure ends all of them, soon and with the same exit code, also where a collective would wait for it.

A process that fails says so in the store that the processes met over. Every process has a thread that looks there,
since its main thread may be waiting in a collective that can never end (with NCCL and HCCL, until their timeout).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from dino.errors import DinoError, Interrupted, NonFiniteError, PeerFailed
from dino.runtime.distributed import Processes, is_written, write

KEY = "failure"
SEEN = "failure_seen"
LOOK_EVERY = 1.0  # seconds
LINGER = (
    5.0  # seconds that the failed process stays for the others to read: rank 0 may hold the store
)
AGREED = (Interrupted, NonFiniteError)  # ends that all processes decide alike


class FailureWatch:
    """Looks for failures of other processes while a run lasts, and announces this process's own."""

    def __init__(self, processes: Processes, phrase: Callable[[str], str] = str) -> None:
        """Start looking, where there is more than one process; `phrase` rewrites what is said of a failure."""
        self.phrase = phrase
        self.rank, self.others, self.store = (
            processes.rank,
            processes.world_size - 1,
            processes.store,
        )
        self.closed = threading.Event()
        if self.store is not None:
            threading.Thread(target=self._look, args=(self.store,), daemon=True).start()

    def announce(self, error: BaseException) -> None:
        """Tell the other processes why this one ends, and wait until they know.

        Raises:
            PeerFailed: `error` only follows from another process's failure, which is the one to report.
        """
        self.close()
        if self.store is None or isinstance(error, AGREED):
            return
        found = None
        with contextlib.suppress(
            RuntimeError
        ):  # the store is gone, and with it rank 0: it knows, or nobody can
            found = _read(self.store)
            if found is None:
                self._tell(self.store, error)
        if found is not None and not isinstance(error, DinoError):
            raise PeerFailed(*found) from None

    def close(self) -> None:
        """Stop looking."""
        self.closed.set()

    def _look(self, store: Store) -> None:
        while not self.closed.wait(LOOK_EVERY):
            try:
                found = _read(store)
            except RuntimeError:  # the store is gone, and with it rank 0: the launcher's business
                return
            if found is not None and not self.closed.is_set():
                store.add(SEEN, 1)
                error = PeerFailed(*found)
                sys.stderr.write(
                    f"[rank {self.rank}] {type(error).__name__}: {self.phrase(str(error))}\n"
                )
                sys.stderr.flush()
                os._exit(error.exit_code)

    def _tell(self, store: Store, error: BaseException) -> None:
        code = error.exit_code if isinstance(error, DinoError) else 1
        text = " ".join(f"{type(error).__name__}: {error}".split())
        write(store, KEY, f"{code} {self.rank} {text}")
        give_up = time.monotonic() + LINGER
        while store.add(SEEN, 0) < self.others and time.monotonic() < give_up:
            time.sleep(LOOK_EVERY / 10)


def _read(store: Store) -> tuple[int, str, str] | None:
    """Exit code, rank and text of the first failure."""
    if not is_written(store, KEY):
        return None
    code, rank, text = store.get(KEY).decode().split(" ", 2)
    return int(code), rank, text
