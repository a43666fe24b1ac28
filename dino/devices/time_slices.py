"""Shorter time slices for the threads of this process, where Linux grants them (6.12 or newer).

The threads of an operator wait for each other at its end. On a busy machine each also waits for its
turn, so a step takes many times as long as its share of the cores explains. A thread with a short
slice gets the same share in smaller pieces, and sooner after it has slept.
"""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

SLICE = 100_000  # ns, the least that Linux accepts
CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # sched_setattr, sched_getattr
USUAL_POLICY = 0  # SCHED_OTHER
THREADS = Path("/proc/self/task")


class Attributes(ctypes.Structure):
    """The first version of the kernel's struct sched_attr (linux/sched/types.h)."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def shorten_slices() -> None:
    """Ask for short slices for all threads of this process; later ones inherit them.

    Priorities and shares stay. Threads with another scheduling policy or shorter slices are left
    alone. Older kernels accept the request and ignore it; other systems are not asked.
    """
    if platform.system() != "Linux" or platform.machine() not in CALLS:
        return
    for thread in sorted(map(int, os.listdir(THREADS))) if THREADS.is_dir() else ():
        attributes = read_attributes(thread)
        if attributes and attributes.policy == USUAL_POLICY and attributes.runtime > SLICE:
            attributes.runtime = SLICE
            _call(0, thread, attributes, 0)


def read_attributes(thread: int) -> Attributes | None:
    """Return the scheduling attributes of a thread (0: this one), or None if they are not told."""
    attributes = Attributes(size=ctypes.sizeof(Attributes))
    told = _call(1, thread, attributes, attributes.size, 0)
    return attributes if told else None


def _call(which: int, thread: int, attributes: Attributes, *rest: int) -> bool:
    number = CALLS[platform.machine()][which]
    words = [ctypes.c_long(word) for word in (number, thread)]
    more = [ctypes.c_long(word) for word in rest]
    system_call = getattr(ctypes.CDLL(None), "syscall", None)
    return system_call is not None and not system_call(*words, ctypes.byref(attributes), *more)
