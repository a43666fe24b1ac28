"""The errors that users meet, and the exit code each one ends a command with."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any


class DinoError(Exception):
    """An end that is explained in one line; `exit_code` is what the shell sees.

    The text names settings between backticks, as Python has them: "`lr` must be >= 0"; the command line writes each as
    its flag.

    Attributes:
        value: What was got, where it is one value.
        remedy: What to do; the end of the line.
    """

    exit_code = 2

    def __init__(self, text: str, *, value: Any = None, remedy: str | None = None) -> None:
        """Keep what is wrong, the value and the remedy."""
        super().__init__(f"{text}; {remedy}" if remedy else text)
        self.value, self.remedy = value, remedy

    @property
    def setting(self) -> str | None:
        """The setting that is wrong, the first that the text names; None where it names none."""
        named = re.search(r"`([a-z][a-z0-9_]*)`", str(self))
        return named[1] if named else None


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


def nearest(
    word: str, known: Sequence[str], families: Sequence[str] = (), *, cutoff: float = 0.5
) -> str:
    """The remedy for an unknown word: the nearest known one, or the list of all, or of families where all are many."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return (
        f"did you mean {close[0]}?"
        if close
        else f"known are {', '.join(families or sorted(known))}"
    )
