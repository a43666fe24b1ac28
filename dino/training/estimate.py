"""When a run will end: a first estimate after two updates, a better one after some log lines."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from dino.runtime.progress import Progress, format_seconds

logger = logging.getLogger(__name__)

SETTLING_LINES = 2  # log lines at the start, while loaders start and graphs compile


class EndEstimate:
    """Says each of the two once."""

    def __init__(self, progress: Progress) -> None:
        """Begin where the progress begins; nothing is said if it is not shown."""
        self.progress, self.lines, self.first = progress, 0, 0.0

    def see_update(self, iteration: int, synchronize: Callable[[], None]) -> None:
        """Estimate from the second update; the first one also loads and compiles.

        Args:
            iteration: Updates of the whole run that are done.
            synchronize: Waits for the device; called in the first two updates.
        """
        done = iteration - self.progress.start
        if done > 2:
            return
        synchronize()
        before, self.first = self.first, time.monotonic()
        left = self.progress.total - iteration
        if done == 2 and left and self.progress.shown:
            pace = self.first - before
            text = "first estimate, from the second update (%.3g s): training takes about %s"
            logger.info(text, pace, format_seconds(left * pace))
            self.progress.redraw(iteration)

    def see_line(self, iteration: int, pace: float) -> None:
        """Estimate from an iteration of `pace` seconds, the mean since the last log line."""
        self.lines += 1
        left = self.progress.total - iteration
        if not self.progress.shown or self.lines != SETTLING_LINES or not left:
            return
        end = time.strftime("%Y-%m-%d %H:%M", time.localtime(time.time() + left * pace))
        text = "%d iterations left at %.3g s: training ends in about %s, on %s"
        logger.info(text, left, pace, format_seconds(left * pace), end)
