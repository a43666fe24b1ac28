"""Progress display: a bar on a terminal, plain lines elsewhere; only rank 0 shows it."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dino.runtime.output import losing_output

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

BAR = "{desc} {n_fmt}/{total_fmt}{postfix} eta {remaining}"
SHORT = {"images/s": "img/s", "data wait": "wait", "skipped steps": "skipped"}  # names on a bar
# Left out, in this order, where a terminal has no room for all values; then others, last first.
LESS = ("lr", "epoch", "data wait", "images/s")
ROOM_FOR_ETA = len(" eta 00:00:00")  # more from 100 hours on


class Progress:
    """Counts steps toward a total and shows values next to them."""

    def __init__(self, total: int, title: str, *, start: int = 0, shown: bool = True) -> None:
        """Begin at step `start` of `total`."""
        self.total, self.title, self.shown = total, title, shown
        self.start = self.done = start
        self.began = time.monotonic()
        self.bar = (
            tqdm(total=total, desc=title, initial=start, dynamic_ncols=True, bar_format=BAR)
            if shown and _can_redraw()
            else None
        )
        self.lines = contextlib.ExitStack()
        if self.bar is not None:
            self.lines.enter_context(logging_redirect_tqdm())  # log lines go above the bar

    def advance(self, done: int, values: Mapping[str, str] | None = None) -> None:
        """Show that `done` steps are complete, with `values` next to them."""
        step, self.done = done - self.done, done
        if self.bar is not None:
            with losing_output(sys.stderr):
                self.bar.set_postfix_str(self._fit(values or {}, self.bar.ncols), refresh=False)
                self.bar.update(step)
                self.bar.refresh()
        elif self.shown:
            shown = "  ".join(f"{name} {value}" for name, value in (values or {}).items())
            logger.info("%s  %d/%d  %s  eta %s", self.title, done, self.total, shown, self.eta())

    def _fit(self, values: Mapping[str, str], columns: int | None) -> str:
        """Write values for a bar of `columns`; where not all fit, some are left out."""
        parts = {name: f"{SHORT.get(name, name)} {value}" for name, value in values.items()}
        room = (columns or 80) - len(f"{self.title} {self.done}/{self.total}, ")
        room -= max(ROOM_FOR_ETA, len(f" eta {self.eta()}"))
        for name in (*LESS, *reversed(parts)):
            if len(" ".join(parts.values())) > room:
                parts.pop(name, None)
        return " ".join(parts.values())

    def redraw(self, done: int) -> None:
        """Show the time left on a terminal, with the values of before."""
        if self.bar is not None:
            step, self.done = done - self.done, done
            with losing_output(sys.stderr):
                self.bar.update(step)
                self.bar.refresh()

    def follow(self, items: Iterable[Item], *, every: int = 100) -> Iterator[Item]:
        """Yield items, one per step; without a terminal, log every `every` items and at the end."""
        before = done = self.done
        for done, item in enumerate(items, before + 1):
            yield item
            if self.bar is not None or (done - before) % every == 0:
                self.advance(done)
        if self.done < done:
            self.advance(done)

    def eta(self) -> str:
        """Return the time left at the pace so far, as h:mm:ss."""
        pace = (time.monotonic() - self.began) / max(self.done - self.start, 1)
        return format_seconds(pace * (self.total - self.done))

    def close(self) -> None:
        """Remove the bar."""
        self.lines.close()
        if self.bar is not None:
            with losing_output(sys.stderr):
                self.bar.close()


def _can_redraw() -> bool:
    """Whether a line of stderr can be drawn again: on a terminal, or in a notebook.

    Not where log lines take a pipe to the terminal (`| tee`): they arrive in the middle of it.
    """
    with contextlib.suppress(OSError, ValueError):  # not every stream has a file
        if stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            return False
    return sys.stderr.isatty() or "ipykernel" in sys.modules


def format_seconds(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
