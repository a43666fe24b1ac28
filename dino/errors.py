"""The errors that users see, and the exit code of each."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any


class DinoError(Exception):
    """A failure explained in one line; `exit_code` is what the shell sees.

    The text names settings in backticks, as Python spells them: "`lr` must be >= 0". The command
    line writes them as flags.

    Attributes:
        value: The rejected value, if there is a single one.
        remedy: What to do about it; appended to the text.
    """

    exit_code = 2

    def __init__(self, text: str, *, value: Any = None, remedy: str | None = None) -> None:
        """Store the text, the value and the remedy."""
        super().__init__(f"{text}; {remedy}" if remedy else text)
        self.value, self.remedy = value, remedy

    @property
    def setting(self) -> str | None:
        """The setting at fault: the first one named in the text, or None."""
        named = re.search(r"`([a-z][a-z0-9_]*)`", str(self))
        return named[1] if named else None


class CheckFailed(DinoError):
    """A check that the user asked for (doctor, data check) found something wrong."""

    exit_code = 1


class OptionError(DinoError):
    """A flag, or a combination of flags, that is invalid."""


class DataError(DinoError):
    """Images or folders that are missing, unreadable or too few."""


class CheckpointError(DinoError):
    """A checkpoint that is damaged, from other software, or from another run."""


class WeightsError(DinoError):
    """Backbone weights that are missing or do not fit the network."""


class DeviceError(DinoError):
    """A device that was asked for and cannot be used."""


class NonFiniteError(DinoError):
    """The loss or the gradients stayed non-finite; nothing has been saved since."""

    exit_code = 3


class Interrupted(DinoError):
    """A signal asked the run to stop, and it stopped after saving."""

    exit_code = 75


class StoppedByCtrlC(Interrupted):
    """Ctrl-C asked the run to stop, and it stopped after saving."""

    exit_code = 130


class PeerFailed(DinoError):
    """Another process of the run failed, died or froze; this one exits with its code, or 1."""

    def __init__(self, code: int, cause: str) -> None:
        """Store the exit code; `cause` says which rank failed, and how."""
        super().__init__(f"ended because {cause}")
        self.exit_code = code


def nearest(
    word: str, known: Sequence[str], families: Sequence[str] = (), *, cutoff: float = 0.5
) -> str:
    """Remedy for an unknown word: the closest known one, else all of them (or their families)."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return (
        f"did you mean {close[0]}?"
        if close
        else f"known are {', '.join(families or sorted(known))}"
    )
