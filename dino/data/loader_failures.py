"""Why loader processes fail, in one line."""

from __future__ import annotations

import logging
import signal
from collections.abc import Sequence
from multiprocessing.process import BaseProcess

from dino.data.start_checks import MORE_SHARED_MEMORY
from dino.errors import DataError

logger = logging.getLogger(__name__)

CAUGHT, TRACEBACK = "Caught ", "Original Traceback"  # how torch passes on an error of a process
DIED = "DataLoader worker"  # how torch tells of a process that died
REMEDIES = {
    signal.SIGKILL: "if memory is short, try fewer `num_workers`",
    signal.SIGBUS: MORE_SHARED_MEMORY,
}


def explain(error: Exception, workers: Sequence[BaseProcess]) -> Exception:
    """The error that users see for one that torch's loader raised; others are returned unchanged.

    Args:
        error: What torch raised.
        workers: The loader processes.
    """
    text = str(error)
    if text.startswith(CAUGHT) and TRACEBACK in text:
        logger.debug("%s", text)
        explained = _explain_caught(text)
    elif DIED in text or isinstance(error, ConnectionError | EOFError):
        explained = _explain_death(error, workers)
    else:
        return error
    # torch keeps the error in a frame of its own traceback. That cycle holds the loader, which
    # would end whenever garbage is collected, and take seconds.
    explained.__cause__ = error.with_traceback(None)
    return explained


def _explain_caught(text: str) -> DataError:
    """The last error of a traceback, which may have several lines."""
    name, lines = text.split()[1], text.strip().splitlines()
    starts = [n for n, line in enumerate(lines) if line.split(":")[0].split(".")[-1] == name]
    reason = " ".join(" ".join(lines[starts[-1] if starts else -1 :]).split())
    full = "No space left on device" in reason or "shared memory" in reason
    return DataError(
        f"a loader process failed: {reason}", remedy=MORE_SHARED_MEMORY if full else None
    )


def _explain_death(error: Exception, workers: Sequence[BaseProcess]) -> DataError:
    """A process that the system ended; without its exit code, memory is the usual reason."""
    code = next((worker.exitcode for worker in workers if worker.exitcode), -signal.SIGKILL)
    reason = (str(error) or type(error).__name__).splitlines()[0]
    if code in map(int.__neg__, REMEDIES):
        remedy = REMEDIES[signal.Signals(-code)]
        return DataError(f"a loader process died ({reason})", remedy=remedy)
    return DataError(
        f"a loader process died with exit code {code} ({reason})",
        remedy="`num_workers` 0 reads the images in the main process",
    )
