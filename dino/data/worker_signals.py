"""Loader processes: signals of a job, which reach them as well as the run, and their end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

OUTLIVED = (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)  # the run may save first
HELD = (*OUTLIVED, signal.SIGTERM)
PATIENCE = 5.0  # s; a process holds the lock of an event for microseconds


@contextlib.contextmanager
def holding_signals(holds: bool = True) -> Iterator[None]:
    """If `holds`, hold signals back while loader processes start, here and in those processes.

    A start that is interrupted leaves processes behind, and one of them may hang. A new process
    keeps the signals blocked until `outlive_signals`. This process also records them, because
    another thread may receive them and Python would still run the handler here.
    """
    if not holds:
        yield
        return
    came: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    caught = [name for name in HELD if in_main_thread and callable(signal.getsignal(name))]
    before = {name: signal.signal(name, lambda number, _: came.append(number)) for name in caught}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, handler in before.items():
            signal.signal(name, handler)
        for number in came:
            signal.raise_signal(number)


def outlive_signals() -> None:
    """Survive signals sent to the whole job until the run has saved; obey the parent's SIGTERM."""
    for name in OUTLIVED:
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, OUTLIVED)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # Unlike os.getppid(), which torch uses, this is never the fork server, which outlives the run.
    parent = multiprocessing.parent_process()
    if parent is not None:
        for end in (_end_when_told, _end_when_alone):
            threading.Thread(target=end, args=(parent,), daemon=True).start()


def _end_when_told(parent: BaseProcess) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def _end_when_alone(parent: BaseProcess) -> None:
    parent.join()
    os._exit(0)


def end_surely(batches: Any) -> None:
    """Let torch's loader end its processes although one was killed at the worst moment.

    Args:
        batches: The iterator of a `DataLoader`; nothing changes if it has no processes.
    """
    event = getattr(batches, "_workers_done_event", None)
    if event is not None and not isinstance(event, _DoneEvent):
        batches._workers_done_event = _DoneEvent(event, batches._workers)


class _DoneEvent:
    """The event that tells loader processes to end.

    They look at it before each batch, and one that is killed in between takes its lock along: torch
    would wait for the lock forever, and so would the other processes.
    """

    def __init__(self, event: Any, workers: Sequence[BaseProcess]) -> None:
        self.event, self.workers = event, workers
        self.told = False

    def is_set(self) -> bool:
        """Whether they were told; only this process tells them."""
        return self.told

    def set(self) -> None:
        """Tell them, or kill them if the lock is lost."""
        self.told = True
        lock = self.event._cond
        if lock.acquire(timeout=PATIENCE):
            lock.release()
            self.event.set()
        else:
            for worker in self.workers:
                worker.kill()
