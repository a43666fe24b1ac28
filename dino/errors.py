"""The errors that users meet, and the exit code each one ends a command with."""

from __future__ import annotations

import difflib
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence


class DinoError(Exception):
    """An end that is explained in one line; `exit_code` is what the shell sees."""

    exit_code = 2


class CheckFailed(DinoError):
    """A check that the user asked for (doctor, data check) found something wrong."""

    exit_code = 1


class OptionError(DinoError):
    """A flag, or a combination of flags, that cannot be meant."""


class DataError(DinoError):
    """Images or folders that are missing, unreadable or too few."""


class CheckpointError(DinoError):
    """A checkpoint that is damaged, foreign, or belongs to another run."""


class WeightsError(DinoError):
    """Backbone weights that are missing or do not fit the network."""


class DeviceError(DinoError):
    """A device that was asked for and cannot be used."""


class NonFiniteError(DinoError):
    """The loss or the gradients stayed non-finite; nothing was saved since."""

    exit_code = 3


class Interrupted(DinoError):
    """A signal asked the run to stop, and it stopped after saving."""

    exit_code = 75


class PeerFailed(DinoError):
    """Another process of the run failed; ends with that one's exit code."""

    def __init__(self, code: int, rank: str, text: str) -> None:
        """Keep the code; `text` is what the process `rank` said."""
        super().__init__(f"ended because rank {rank} did: {text}")
        self.exit_code = code


def nearest(word: str, known: Sequence[str], families: Sequence[str] = ()) -> str:
    """The remedy for an unknown word: the nearest known one, or the list of all, or of families where all are many."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(families or sorted(known))}"


def exit_code(command: Callable[[], None]) -> int:
    """Run `command` and turn the errors above into one line on stderr and an exit code.

    Args:
        command: The body of a script, without arguments.

    Returns:
        0 when it returned, the error's `exit_code`, or what shells give for Ctrl-C (130). Other exceptions are bugs and
        pass through with a traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold bytes that are no text
    try:
        command()
    except KeyboardInterrupt:
        sys.stderr.write("stopped by Ctrl-C; a training run continues from its last checkpoint with the same command\n")
        return 128 + signal.SIGINT
    except DinoError as error:
        rank = f"[rank {os.environ['RANK']}] " if "RANK" in os.environ else ""
        sys.stderr.write(f"{rank}{type(error).__name__}: {' '.join(str(error).split())}\n")
        return error.exit_code
    return 0
