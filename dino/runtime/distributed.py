"""The processes of one run: how they join, and what they exchange.

Everything also works with one process, without a process group and without a port.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store

from dino.errors import CheckpointError
from dino.runtime.launch import Launch
from dino.runtime.meeting import Meeting, is_written, meet, write

# The limit of a collective; it is long because one rank may be writing a checkpoint.
WAIT_LIMIT = timedelta(minutes=30)
# torch's own is longer: its error does not say what the other processes are doing.
GROUP_TIMEOUT = WAIT_LIMIT + timedelta(minutes=5)
LOOK_EVERY = 0.2  # seconds between polls of a process that waits for others without a limit


class Processes:
    """The process group of a run, or the absence of one.

    Attributes:
        phase: What this process is doing, for the report if the run hangs.
        waits: What it is waiting for; a new tuple each time.
    """

    def __init__(self, launch: Launch, backend: str, dist_url: str) -> None:
        """Join the other processes, if there are any.

        Args:
            launch: This process's position, already exported.
            backend: gloo, nccl or hccl.
            dist_url: `env://`, `tcp://host:port` or `file:///shared/path`.

        Raises:
            OptionError: The meeting point is not usable.
        """
        self.rank, self.world_size = launch.rank, launch.world_size
        self.local_world_size = launch.local_world_size
        self.meeting: Meeting | None = None
        self.phase, self.reads = "starting", 0
        self.waits: tuple[str] | None = None
        if launch.world_size > 1:
            self.meeting = meet(launch, dist_url)
            group_store = PrefixStore("group", self.meeting.store)
            dist.init_process_group(
                backend,
                store=group_store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=GROUP_TIMEOUT,
            )

    @property
    def store(self) -> Store | None:
        """What the processes of this run exchange, by key; None for a process alone."""
        return None if self.meeting is None else self.meeting.store

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, which logs and saves."""
        return self.rank == 0

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Say that this process waits for others inside the block, and for what."""
        self.waits = (what,)
        try:
            yield
        finally:
            self.waits = None

    def describe(self) -> str:
        """Return what this process is doing."""
        waits = self.waits
        return self.phase if waits is None else f"{self.phase}, waiting for {waits[0]}"

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """Average a tensor over processes, in place."""
        return self.all_reduce_mean_async(tensor)()

    def all_reduce_mean_async(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start averaging over processes, in place; returns a function that waits for the tensor.

        The mean is a sum and a division because hccl has no mean.
        """
        if self.world_size == 1:
            return lambda: tensor
        work = dist.all_reduce(tensor, async_op=True)

        def finish() -> Tensor:
            with self.waiting("a mean over processes"):
                work.wait()
            return tensor.div_(self.world_size)

        return finish

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum a tensor over processes, in place."""
        if self.world_size > 1:
            with self.waiting("a sum over processes"):
                dist.all_reduce(tensor)
        return tensor

    def copy_from_first(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with rank 0's."""
        with torch.no_grad(), self.waiting("rank 0's tensors"):
            for tensor in tensors if self.world_size > 1 else ():
                dist.broadcast(tensor.data, 0)

    def gather_rows(self, rows: Tensor, count: int) -> Tensor:
        """Gather the rows of all processes in data set order.

        Args:
            rows: (n, D) of this process, for images rank, rank + world, rank + 2 world, ...
            count: N, the number of rows over all processes.

        Returns:
            (N, D) on every process.
        """
        if self.world_size == 1:
            return rows
        longest = -(-count // self.world_size)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        gathered = [torch.empty_like(padded) for _ in range(self.world_size)]
        with self.waiting("the rows of all processes"):
            dist.all_gather(gathered, padded)
        return torch.stack(gathered, dim=1).flatten(0, 1)[:count]

    def read_from_first(self, name: str, value: str) -> str:
        """Return rank 0's `value` on every process; it goes through the store.

        All processes call this in the same order; the name may be one of before.
        """
        if self.store is None:
            return value
        self.reads += 1
        key = f"{name} {self.reads}"
        if self.is_rank_zero:
            self.store.set(key, value)
        with self.waiting(f"rank 0's {name}"):
            return str(self.store.get(key).decode())

    def check_position(self, folder: Path, name: str, value: int) -> None:
        """Check that every process resumes at the same place.

        Args:
            folder: Output folder of the run.
            name: "iteration" or "epoch".
            value: Position that this process read there.

        Raises:
            CheckpointError: Rank 0 read another one, so the hosts do not share the folder.
        """
        first = self.read_from_first(name, str(value))
        if int(first) != value:
            raise CheckpointError(
                f"{folder} holds {name} {value} here and {first} on rank 0's host",
                remedy="`output_dir` must be a folder that all hosts share",
            )

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            with self.waiting("a barrier"):
                dist.barrier()

    def wait_for_all(self, name: str) -> None:
        """Wait until all processes have reached the point of this name, however long that takes.

        They poll the store, because a collective ends after WAIT_LIMIT. If a process fails, all
        end (`runtime/failures.py`).
        """
        if self.store is None:
            return
        write(self.store, f"{name}_{self.rank}", "")
        while not all(is_written(self.store, f"{name}_{rank}") for rank in range(self.world_size)):
            time.sleep(LOOK_EVERY)
        self.barrier()  # brief: no process may leave and end the store before all have polled it

    @contextlib.contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Run the block on rank 0, then on all others: for downloads and generated data."""
        if not self.is_rank_zero:
            self.barrier()
        try:
            yield
        finally:
            if self.is_rank_zero:
                self.barrier()

    def close(self) -> None:
        """Leave the process group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


class StopAgreement:
    """Makes all processes stop after the same iteration, through the store, without collectives.

    A process that needs to stop writes a key at its next log line; every process reads the store at
    its log lines. The iterations between two log lines exchange gradients, so all processes see at
    the next log line what one wrote at this one.
    """

    KEY = "stop_at_log_line"

    def __init__(self, processes: Processes) -> None:
        """Start without a request to stop."""
        self.store, self.lines = processes.store, 0

    def check(self, wanted: bool) -> bool:
        """Return whether to stop now; every process calls this at each log line.

        Args:
            wanted: Whether this process received a signal.
        """
        self.lines += 1
        if self.store is None:
            return wanted
        if wanted and not is_written(self.store, self.KEY):
            write(self.store, self.KEY, str(self.lines + 1))
        return is_written(self.store, self.KEY) and self.lines >= int(self.store.get(self.KEY))
