"""Ends processes with all that they started, also what got away into a session of its own."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Collection
from pathlib import Path

TOKEN = "DINO_VERIFY_TOKEN"  # the variable that descendants inherit
PROC = Path("/proc")


def end_family(leaders: Collection[int], token: str) -> None:
    """Kill leaders of sessions, whoever is in their sessions, and every process that was started with the token.

    Args:
        leaders: Process numbers; those that have ended do not matter.
        token: What the value of TOKEN begins with in the environment of what they started; "" if none was given.
    """
    for pid in leaders:
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
    for pid in find_family(leaders, token):
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def find_family(leaders: Collection[int], token: str) -> list[int]:
    """Processes that run in one of the sessions, or were started with the token; none where there is no /proc."""
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
