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
from dino.errors import DeviceError

MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container (cgroup v2), in bytes
RECENT = hasattr(
    torch, "get_autocast_dtype"
)  # torch 2.4, which has the kernels; beside PopTorch there is 2.0
KEPT = {
    -3: 1 << 27,
    -1: 1 << 30,
}  # glibc's M_MMAP_THRESHOLD, M_TRIM_THRESHOLD (malloc.h) in bytes, in this order


class CpuDevice(EagerDevice):
    """Host memory, gloo; fp32, bf16 and op lists."""

    fuses_updates = RECENT
    reads_freely = True

    def __init__(self, precision: str, lists: OpLists | None = None) -> None:
        """Open it.

        Raises:
            DeviceError: fp16, which has no loss scaling here.
        """
        if precision == "fp16":
            raise DeviceError(
                "`precision` fp16 needs `device` cuda", remedy="use bf16 or fp32 on the cpu"
            )
        if lists is not None:
            restore_attention()  # torch 2.5 lets nobody replace what Python has replaced already
        super().__init__("cpu", torch.device("cpu"), "gloo", precision, lists)

    def compile_train(
        self, program: TrainProgram, optimizer: torch.optim.Optimizer, micro_batches: int
    ) -> TrainStep:
        """See the contract; this process keeps what it frees, and its attention in bfloat16 is ours, from now on."""
        keep_freed_memory()
        if self.precision == "bf16" and RECENT:
            widen_backward()
        return super().compile_train(program, optimizer, micro_batches)

    def count_cards(self) -> int:
        """See the contract; any number, so as many as have a core."""
        return len(os.sched_getaffinity(0))

    def memory_peak(self) -> int:
        """See the contract; of the whole process, its libraries included."""
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def memory_total(self) -> int:
        """See the contract; of the host, or what a container may use of it."""
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        with contextlib.suppress(
            OSError, ValueError
        ):  # no such limit: the file is not there, or says max
            limits.append(int(MEMORY_LIMIT.read_text(encoding="ascii")))
        return min(limits)


def keep_freed_memory() -> None:
    """Let malloc hand freed memory out again where it would give it back: every new page costs a fault.

    A step frees and takes the same sizes over and over, and by default every tensor above 32 MB is mapped anew. This
    holds for the whole process and for those that it forks: each keeps up to 1 GB that it once used. A C library that
    refuses the first setting (an old one) or has none is left as it is: the second alone would make things slower.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        all(set_option(option, value) for option, value in KEPT.items())
