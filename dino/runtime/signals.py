"""Signals that end a run: what they save first, and when they end it at once."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, cast

from dino.errors import Interrupted, StoppedByCtrlC

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
FROM_TERMINAL = (signal.SIGHUP, signal.SIGINT)  # a person waits, or has gone
CONTINUES = "; the same command continues"


class StopRequest:
    """Records that a signal arrived, so that the loop can save and stop.

    A second Ctrl-C ends the run at once. So does a signal of the terminal while nothing is unsaved.

    Attributes:
        signal: The last signal that arrived, or None.
        done: Iterations so far; the loop sets it.
        kept: How many of them a checkpoint has, or will have before the process leaves.
        saved: What the newest checkpoint has and where it is, or None.
    """

    def __init__(self, *, alone: bool = True) -> None:
        """Start without a signal, work or checkpoint.

        Args:
            alone: Whether the run has one process only. Others cannot know when rank 0 has written.
        """
        self.signal = cast("signal.Signals | None", None)
        self.done, self.kept, self.alone = 0, 0, alone
        self.saved: str | None = None

    @property
    def unsaved(self) -> bool:
        """Whether there is work that no checkpoint has, as far as this process knows."""
        return self.done > self.kept

    def resume(self, iteration: int, path: object) -> None:
        """Record that the run continues from a checkpoint."""
        self.done = self.kept = iteration
        self.saved = f"iteration {iteration} in {path}"

    def hand_over(self) -> None:
        """Record that all work so far is being written, and that leaving waits for it."""
        self.kept = self.done if self.alone else self.kept

    def keep(self, iteration: int, path: object) -> None:
        """Record that a checkpoint is written; any thread may call it."""
        self.saved = f"iteration {iteration} in {path}"

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals inside the block and restore their handlers after it.

        Raises:
            KeyboardInterrupt: Ctrl-C ended the block at once. The text says what is saved.
        """
        try:
            with _handling(dict.fromkeys(STOP_SIGNALS, self._remember)):
                yield self
        except KeyboardInterrupt:
            saved = f"saved is {self.saved}{CONTINUES}" if self.saved else "nothing is saved"
            raise KeyboardInterrupt(saved) from None

    def explain(self) -> Interrupted:
        """Return the error that ends a run after it has saved."""
        kind = StoppedByCtrlC if self.signal == signal.SIGINT else Interrupted
        reason = self.signal.name if self.signal else "a signal to another process"
        return kind(f"{reason}: saved {self.saved}{CONTINUES}")

    def __bool__(self) -> bool:
        """Whether a signal has arrived."""
        return self.signal is not None

    def _remember(self, number: int, frame: FrameType | None) -> None:
        again = number == signal.SIGINT == self.signal
        if again or (number in FROM_TERMINAL and not self.unsaved):
            _leave(number, frame)
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def leaving_on(*signals: signal.Signals) -> Iterator[None]:
    """Make signals raise SystemExit inside the block, so that it removes its temporary files."""
    with _handling(dict.fromkeys(signals, _leave)):
        yield


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End with the code that shells give the signal."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


@contextlib.contextmanager
def _handling(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Handle signals inside the block; those that are ignored stay so, as nohup wants it.

    Outside the main thread, signals cannot be caught.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    caught = handlers if in_main_thread else {}
    before = {
        number: signal.signal(number, handler)
        for number, handler in caught.items()
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
