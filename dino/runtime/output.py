"""What a run prints after nobody reads it any more: the terminal is closed, the reader has ended.

Ctrl-C ends `tee` in `main_dino.py | tee console` before the run has saved. Neither may end a run.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

GONE = (errno.EPIPE, errno.EIO)  # a pipe without a reader, a closed terminal


class Console(logging.StreamHandler):  # type: ignore[type-arg]  # no generic before Python 3.11
    """Prints log records; lines that cannot be printed are lost without a word."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Lose the line if the stream is at fault, else show the caller's mistake."""
        error = sys.exc_info()[1]
        if isinstance(error, OSError):
            _lose(self.stream, error)
        else:
            super().handleError(record)


@contextlib.contextmanager
def losing_output(stream: TextIO) -> Iterator[None]:
    """Print to the stream inside the block; where that is not possible, go on after it."""
    try:
        yield
    except OSError as error:
        _lose(stream, error)


def _lose(stream: TextIO, error: OSError) -> None:
    """Send what follows nowhere if the reader is gone; else it may be possible again (full disk).

    What is buffered would otherwise fail once more when Python ends, and change the exit code.
    """
    if error.errno in GONE:
        with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
