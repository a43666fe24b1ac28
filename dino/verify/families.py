"""Ends processes and all their descendants, also those in their own sessions."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection
from pathlib import Path

TOKEN = "DINO_VERIFY_TOKEN"  # the variable that descendants inherit
PROC = Path("/proc")


def end_family(leaders: Collection[int], token: str) -> None:
    """Kill session leaders, the processes in their sessions, and every process with the token.

    Args:
        leaders: Process numbers; those that have ended do not matter.
        token: Prefix of the value of TOKEN in the environment of their descendants; "" for none.
    """
    for pid in leaders:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    for pid in find_family(leaders, token):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def find_family(leaders: Collection[int], token: str) -> list[int]:
    """Return processes in one of the sessions or with the token; none if there is no /proc."""
    mark = f"{TOKEN}={token}".encode() if token else None
    found = []
    for folder in PROC.glob("[0-9]*"):
        if int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
            if session in leaders or (mark and mark in (folder / "environ").read_bytes()):
                found.append(int(folder.name))
    return found
