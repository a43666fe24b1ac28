"""The host processor."""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path

import torch

from dino.devices.eager import EagerDevice
from dino.devices.op_lists import OpLists
from dino.errors import DeviceError

MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container (cgroup v2), in bytes


class CpuDevice(EagerDevice):
    """Host memory, gloo; fp32, bf16 and op lists."""

    reads_freely = True

    def __init__(self, precision: str, lists: OpLists | None = None) -> None:
        """Open it.

        Raises:
            DeviceError: fp16, which has no loss scaling here.
        """
        if precision == "fp16":
            raise DeviceError("--precision fp16 needs --device cuda; use bf16 or fp32 on the cpu")
        super().__init__("cpu", torch.device("cpu"), "gloo", precision, lists)

    def memory_peak(self) -> int:
        """See the contract; of the whole process, its libraries included."""
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def memory_total(self) -> int:
        """See the contract; of the host, or what a container may use of it."""
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        with contextlib.suppress(OSError, ValueError):  # no such limit: the file is not there, or says max
            limits.append(int(MEMORY_LIMIT.read_text(encoding="ascii")))
        return min(limits)
