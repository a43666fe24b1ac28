"""The host processor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
from pathlib import Path

import torch

from dino.devices.base import TrainProgram, TrainStep
from dino.devices.cpu_attention import restore_attention, widen_backward
from dino.devices.eager import EagerDevice
from dino.devices.op_lists import OpLists
from dino.devices.time_slices import shorten_slices
from dino.errors import DeviceError

MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container (cgroup v2), in bytes
# torch 2.4 or newer, which has the kernels; PopTorch comes with torch 2.0.
RECENT = hasattr(torch, "get_autocast_dtype")
# glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD (malloc.h) in bytes, to be set in this order.
KEPT = {-3: 1 << 27, -1: 1 << 30}


class CpuDevice(EagerDevice):
    """Host memory, gloo; fp32, bf16 and op lists."""

    fuses_updates = RECENT
    reads_freely = True
    recompute = "activations" if RECENT else "nothing"

    def __init__(self, precision: str, lists: OpLists | None = None) -> None:
        """Open the CPU.

        Raises:
            DeviceError: The format is fp16, which has no loss scaling here.
        """
        if precision == "fp16":
            raise DeviceError(
                "`precision` fp16 needs `device` cuda", remedy="use bf16 or fp32 on the cpu"
            )
        if lists is not None:
            restore_attention()  # torch 2.5 cannot replace a kernel that Python already replaced
        super().__init__("cpu", torch.device("cpu"), "gloo", precision, lists)

    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """See the base class.

        From then on this process keeps freed memory, has short time slices, and uses our attention
        for bfloat16.
        """
        keep_freed_memory()
        shorten_slices()
        if self.precision == "bf16" and RECENT:
            widen_backward()
        return super().compile_train(program, optimizer, micro_batches)

    def temporary_bytes(self) -> int:
        """See the base class; more than a cache holds would be read from memory again."""
        return 1 << 25

    def count_cards(self) -> int:
        """See the base class; the number of cores, since processes can share a CPU."""
        return len(os.sched_getaffinity(0))

    def memory_peak(self) -> int:
        """See the base class; the peak of the whole process, including its libraries."""
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def memory_total(self) -> int:
        """See the base class; the host's memory, or the container's limit."""
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        # Without a limit the file is missing or contains "max".
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(MEMORY_LIMIT.read_text(encoding="ascii")))
        return min(limits)


def keep_freed_memory() -> None:
    """Make malloc reuse freed memory instead of returning it, because every new page costs a fault.

    A step allocates and frees the same sizes again and again, and by default every tensor above
    32 MB is mapped again. The setting applies to the whole process and its forks; each keeps up to
    1 GB. If the C library lacks or rejects the first setting (an old one), nothing changes: the
    second setting alone would be slower.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        all(set_option(option, value) for option, value in KEPT.items())
