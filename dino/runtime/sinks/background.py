"""A sink that calls a service from a thread: a slow or lost service never holds up a run."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import Any

from dino.runtime.sinks.base import Jpeg, Sink

logger = logging.getLogger(__name__)

MOST_WAITING = 1000  # calls; a log line is one
LAST_WAIT = 30.0  # seconds for what is left at the end of a run


class Background(Sink):
    """Hands calls to a service's sink, in order; what it does not take is lost with one warning."""

    def __init__(self, place: str, begin: Callable[[], Sink]) -> None:
        """Start the thread.

        Args:
            place: The service's name in warnings.
            begin: Reaches the service; called in the thread, again at each call until it succeeds.
        """
        self.place, self.begin = place, begin
        self.sink: Sink | None = None
        self.warned = self.abandoned = False
        self.calls: queue.Queue[Callable[[Sink], None] | None] = queue.Queue(MOST_WAITING)
        self.thread = threading.Thread(target=self._work, name=f"sink {place}", daemon=True)
        self.thread.start()

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Hand on numbers."""
        self._put(lambda sink: sink.add_scalars(values, step))

    def add_images(self, images: Mapping[str, Jpeg], step: int) -> None:
        """Hand on pictures."""
        self._put(lambda sink: sink.add_images(images, step))

    def add_settings(self, recipe: str, settings: Mapping[str, Any], step: int) -> None:
        """Hand on settings."""
        self._put(lambda sink: sink.add_settings(recipe, settings, step))

    def close(self, *, completed: bool) -> None:
        """Wait until the service has all, but not longer than `LAST_WAIT`."""
        with contextlib.suppress(queue.Full):
            self.calls.put(lambda sink: sink.close(completed=completed), timeout=LAST_WAIT)
            self.calls.put(None, timeout=LAST_WAIT)
            self.thread.join(LAST_WAIT)
        if self.thread.is_alive():
            self.abandoned = True
            self._warn(f"no answer within {LAST_WAIT:.0f} s at the end")

    def _put(self, call: Callable[[Sink], None]) -> None:
        try:
            self.calls.put_nowait(call)
        except queue.Full:
            self._warn(f"{MOST_WAITING} lines wait for an answer")

    def _work(self) -> None:
        while not self.abandoned and (call := self.calls.get()) is not None:
            try:
                self.sink = self.sink or self.begin()
                call(self.sink)
            except Exception as error:  # noqa: BLE001 - clients raise errors of many libraries
                self._warn(" ".join(str(error).split()) or type(error).__name__)

    def _warn(self, why: str) -> None:
        if not self.warned:
            logger.warning("%s does not take the run's lines: %s; lines are lost", self.place, why)
        self.warned = True
