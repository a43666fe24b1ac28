"""If one process fails, dies or freezes, all others end soon and say which one it was.

A failing process writes its error to the run's store. Every process has a thread that watches the
store and the other processes, because its main thread may wait in a collective that never ends
(with NCCL and HCCL, until their timeout). A second thread watches whether the store answers.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from torch.distributed.distributed_c10d import Store

from dino.errors import DinoError, Interrupted, NonFiniteError, PeerFailed
from dino.runtime.census import Census
from dino.runtime.distributed import WAIT_LIMIT, Processes
from dino.runtime.launch import tell_launcher
from dino.runtime.meeting import is_written, write
from dino.runtime.output import losing_output

KEY = "failure"
NEWS = "news"  # counts the calls for an immediate beat
LOOK_EVERY = 1.0  # seconds
BEAT_EVERY = 10.0  # seconds
# Seconds that a process waits for the others to read a failure: it may host the store.
LINGER = 10.0
# Seconds until a death closes all connections, and in which a process that is called must beat.
SETTLE, ANSWER = 1.0, 25.0
AGREED = (Interrupted, NonFiniteError)  # raised by all processes at the same point


class Failure(NamedTuple):
    """Why a run ends: the exit code, and the rank with what happened to it."""

    code: int
    cause: str


class FailureWatch:
    """Watches the other processes during a run, and announces this process's own failure.

    Attributes:
        awake: Seconds that this process has run; it does not advance while the process is stopped.
        answered: When the store last answered, on that clock.
    """

    def __init__(
        self,
        processes: Processes,
        phrase: Callable[[str], str] = str,
        hang_timeout: float = 0,
    ) -> None:
        """Start watching if there are several processes.

        Args:
            processes: The processes of the run.
            phrase: Rewrites the failure message.
            hang_timeout: Seconds after which a silent process counts as frozen; 0 = never.
        """
        self.processes, self.phrase, self.hang_timeout = processes, phrase, hang_timeout
        self.beat_every = min(BEAT_EVERY, hang_timeout / 4) if hang_timeout else BEAT_EVERY
        self.look_every = min(LOOK_EVERY, self.beat_every)
        self.awake, self.answered, self.beats_at, self.news = 0.0, 0.0, 0.0, 0
        self.waits, self.waits_since = processes.waits, 0.0
        self.closed, self.is_mine, self.last_word = threading.Event(), False, threading.Lock()
        self.threads = list[threading.Thread]()
        self.meeting = processes.meeting
        if self.meeting is not None:
            self.store: Store = self.meeting.watch
            self.census = Census(self.store, processes.rank, processes.world_size)
            self.census.beat(processes.describe())
            works = (self._keep_looking, self._keep_time)
            self.threads = [threading.Thread(target=work, daemon=True) for work in works]
            for thread in self.threads:
                thread.start()

    def announce(self, error: BaseException, shown: BaseException | None = None) -> None:
        """Tell the other processes why this one ends, and wait until they have read it.

        Args:
            error: What ended the work.
            shown: What the others are told instead.

        Raises:
            PeerFailed: `error` is a consequence of another process's failure, which is reported
                instead.
        """
        if self.meeting is None:
            return
        if isinstance(error, AGREED):
            self.leave()
            return
        self.is_mine = isinstance(error, DinoError)
        try:
            failure = None if self.is_mine else self._find_cause(isinstance(error, RuntimeError))
            if failure is None:
                self.is_mine = True
                self._tell_mine(shown or error)
        except RuntimeError:
            failure = None if self.is_mine else self._blame_the_store()
        if failure is not None:
            self.last_word.acquire()
            self._acknowledge()
            self.close()
            raise PeerFailed(*failure) from None
        self.close()

    def leave(self) -> None:
        """Stop watching because the work is done; rank 0 waits for the others to do the same."""
        self.close()
        for thread in self.threads:
            thread.join(5 * LOOK_EVERY)
        if self.meeting is None:
            return
        with contextlib.suppress(RuntimeError):  # rank 0 has left
            self.census.leave()
            if self.processes.is_rank_zero:
                self.census.wait_for_others(LINGER)

    def close(self) -> None:
        """Stop watching."""
        self.closed.set()

    def _keep_time(self) -> None:
        before = time.monotonic()
        while not self.closed.wait(self.look_every):
            now = time.monotonic()
            self.awake += min(now - before, 2 * self.look_every)
            before = now
            if self.hang_timeout and self.awake - self.answered > self.hang_timeout:
                cause = f"{self._holder()} has not answered for {self.hang_timeout:g} s"
                self._end(Failure(1, f"{cause} (`hang_timeout`)"), store_answers=False)

    def _keep_looking(self) -> None:
        while not self.closed.wait(self.look_every):
            try:
                failure = self._look()
                self.answered = self.awake
            except RuntimeError:
                if self.closed.is_set():
                    return
                failure = self._blame_the_store()
            if failure is not None and not self.is_mine:
                self._end(failure)

    def _look(self) -> Failure | None:
        """Beat if it is time to, and return the failure of the run if there is one."""
        self._check_store()
        news, is_due = self.store.add(NEWS, 0), self.awake >= self.beats_at
        if is_due or news > self.news:
            self.news = news
            self.census.beat(self.processes.describe())
        if is_due:
            self.beats_at = self.awake + self.beat_every
            self.census.listen(self.awake)
        cause = self._find_death() or self._find_silence() or self._find_hang()
        if cause:
            _tell(self.store, Failure(1, cause))
        return _read(self.store)

    def _find_death(self) -> str | None:
        dead = self.census.find_dead()
        return None if dead is None else f"{self.census.describe(dead)} ended without a word"

    def _find_silence(self) -> str | None:
        if not self.hang_timeout:
            return None
        silent = self.census.find_silent(self.awake, self.hang_timeout)
        return (
            None
            if silent is None
            else f"{self.census.describe(silent)} is frozen or cannot be reached: it has been "
            f"silent for {self.hang_timeout:g} s (`hang_timeout`)"
        )

    def _find_hang(self) -> str | None:
        if self.waits is not self.processes.waits:
            self.waits, self.waits_since = self.processes.waits, self.awake
        if self.waits is None or self.awake - self.waits_since < WAIT_LIMIT.total_seconds():
            return None
        self.census.beat(self.processes.describe())
        return (
            f"{self.census.describe(self.processes.rank)} has waited for {self.waits[0]} for "
            f"{WAIT_LIMIT}, and all processes are alive ({self.census.describe_phases()})"
        )

    def _find_cause(self, may_be_consequence: bool) -> Failure | None:
        """Return another process's failure, or None if the error is this process's own.

        A connection that ends says nothing of who died, so all processes are called.
        """
        if not may_be_consequence:
            return _read(self.store)
        time.sleep(SETTLE)
        self._check_store()
        before, give_up = self.census.count_beats(), time.monotonic() + ANSWER
        self.store.add(NEWS, 1)
        while True:
            self._check_store()
            cause, absent = self._find_death(), self.census.find_unanswering(before)
            if absent is not None and time.monotonic() > give_up:
                cause = cause or f"{self.census.describe(absent)} ended or cannot be reached"
            if cause:
                _tell(self.store, Failure(1, cause))
            failure = _read(self.store)
            if failure is not None or absent is None:
                return failure
            time.sleep(self.look_every / 10)

    def _check_store(self) -> None:
        """Raise an error if the store has ended, before a request that would print a stack."""
        if self.meeting is not None and self.meeting.is_over():
            raise RuntimeError("the store has ended")

    def _holder(self) -> str:
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return "torchrun, which holds the processes' store,"
        return f"{self.census.describe(0)}, which holds the processes' store,"

    def _blame_the_store(self) -> Failure:
        return Failure(1, f"{self._holder()} ended or cannot be reached")

    def _tell_mine(self, error: BaseException) -> None:
        code = error.exit_code if isinstance(error, DinoError) else 1
        if isinstance(error, KeyboardInterrupt):
            code = 128 + signal.SIGINT
        text = " ".join(f"{type(error).__name__}: {error}".split())
        _tell(self.store, Failure(code, f"rank {self.processes.rank} did: {text}"))
        self.census.wait_for_others(LINGER)

    def _acknowledge(self) -> None:
        """Say that this process knows the failure; rank 0 waits for the others to know it too."""
        with contextlib.suppress(RuntimeError):
            self._check_store()
            self.census.acknowledge()
            if self.processes.is_rank_zero:
                self.census.wait_for_others(LINGER)

    def _end(self, failure: Failure, *, store_answers: bool = True) -> None:
        """End this process, unless another thread is about to."""
        self.last_word.acquire()
        if store_answers:
            self._acknowledge()
        error = PeerFailed(*failure)
        line = f"[rank {self.processes.rank}] {type(error).__name__}: {self.phrase(str(error))}"
        tell_launcher(line)
        with losing_output(sys.stderr):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        os._exit(error.exit_code)


def _tell(store: Store, failure: Failure) -> None:
    """Write the failure that ends the run, unless there is one."""
    if store.add(f"{KEY} claimed", 1) == 1:
        write(store, KEY, f"{failure.code} {failure.cause}")


def _read(store: Store) -> Failure | None:
    """Return the first failure, or None."""
    if not is_written(store, KEY):
        return None
    code, cause = store.get(KEY).decode().split(" ", 1)
    return Failure(int(code), cause)
