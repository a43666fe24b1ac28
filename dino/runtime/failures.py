"""If one process fails, all others end soon and with the same exit code, even inside a collective.

A failing process writes its error to the store of the process group. Every process has a thread
that watches the store, because its main thread may wait in a collective that never ends (with NCCL
and HCCL, until their timeout).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from torch.distributed.distributed_c10d import Store

from dino.errors import DinoError, Interrupted, NonFiniteError, PeerFailed
from dino.runtime.distributed import Processes, is_written, write
from dino.runtime.launch import tell_launcher
from dino.runtime.output import losing_output

KEY = "failure"
SEEN = "failure_seen"
LOOK_EVERY = 1.0  # seconds
# Seconds that a failed process waits for the others to read its error: rank 0 may host the store.
LINGER = 5.0
AGREED = (Interrupted, NonFiniteError)  # raised by all processes at the same point


class FailureWatch:
    """Watches for failures of other processes during a run, and announces this process's own."""

    def __init__(self, processes: Processes, phrase: Callable[[str], str] = str) -> None:
        """Start watching if there are several processes; `phrase` rewrites the failure message."""
        self.phrase = phrase
        self.rank, self.others = processes.rank, processes.world_size - 1
        self.store = processes.store
        self.closed = threading.Event()
        if self.store is not None:
            threading.Thread(target=self._look, args=(self.store,), daemon=True).start()

    def announce(self, error: BaseException) -> None:
        """Tell the other processes why this one ends, and wait until they have read it.

        Raises:
            PeerFailed: `error` is a consequence of another process's failure, which is reported
                instead.
        """
        self.close()
        if self.store is None or isinstance(error, AGREED):
            return
        failure = None
        with contextlib.suppress(RuntimeError):  # the store ended with rank 0: nobody can be told
            failure = _read(self.store)
            if failure is None:
                self._tell(self.store, error)
        if failure is not None and not isinstance(error, DinoError):
            raise PeerFailed(*failure) from None

    def close(self) -> None:
        """Stop watching."""
        self.closed.set()

    def _look(self, store: Store) -> None:
        while not self.closed.wait(LOOK_EVERY):
            try:
                failure = _read(store)
            except RuntimeError:  # the store ended with rank 0: the launcher handles that
                return
            if failure is not None and not self.closed.is_set():
                store.add(SEEN, 1)
                error = PeerFailed(*failure)
                line = f"[rank {self.rank}] {type(error).__name__}: {self.phrase(str(error))}"
                tell_launcher(line)
                with losing_output(sys.stderr):
                    sys.stderr.write(f"{line}\n")
                    sys.stderr.flush()
                os._exit(error.exit_code)

    def _tell(self, store: Store, error: BaseException) -> None:
        code = error.exit_code if isinstance(error, DinoError) else 1
        if isinstance(error, KeyboardInterrupt):
            code = 128 + signal.SIGINT
        text = " ".join(f"{type(error).__name__}: {error}".split())
        write(store, KEY, f"{code} {self.rank} {text}")
        give_up = time.monotonic() + LINGER
        while store.add(SEEN, 0) < self.others and time.monotonic() < give_up:
            time.sleep(LOOK_EVERY / 10)


def _read(store: Store) -> tuple[int, str, str] | None:
    """Return exit code, rank and text of the first failure, or None."""
    if not is_written(store, KEY):
        return None
    code, rank, text = store.get(KEY).decode().split(" ", 2)
    return int(code), rank, text
