"""The processes of one run: who they are, how they meet, and the few things they exchange.

Everything works with one process too, without a process group and without a port.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from dino.errors import OptionError

JOIN_TIMEOUT = timedelta(
    minutes=30
)  # as long as a collective may take: one rank may be writing a checkpoint
LOOK_EVERY = 0.2  # seconds between two looks of a process that waits for others without a limit


@dataclass(frozen=True, kw_only=True)
class Launch:
    """What the launcher's environment says about this process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


# Rank, world, local rank and local world of torchrun (and torch.distributed.launch), mpirun and srun. Slurm's are those
# of a step: a script that runs python in an allocation without srun is a single process.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
)


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Tell this process's place from the environment; without a launcher it is alone.

    Raises:
        OptionError: A launcher's variable holds no number, or a rank beyond the world.
    """
    for rank, world_size, local_rank, local_world_size in LAUNCHERS:
        if rank in environment and world_size in environment:
            launch = Launch(
                rank=_number(environment, rank),
                world_size=_number(environment, world_size),
                local_rank=_number(environment, local_rank, "0"),
                local_world_size=_number(environment, local_world_size, environment[world_size]),
            )
            if not 0 <= launch.rank < launch.world_size:
                raise OptionError(
                    f"{rank}={launch.rank} and {world_size}={launch.world_size} do not go together"
                )
            return launch
    return Launch()


JOBS = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "PMIX_NAMESPACE",
    "OMPI_MCA_ess_base_jobid",
)  # what tells jobs apart


class Processes:
    """The process group of a run, or the absence of one."""

    def __init__(self, launch: Launch, backend: str, dist_url: str) -> None:
        """Meet the other processes, if there are any.

        Args:
            launch: This process's place, exported.
            backend: gloo, nccl or hccl.
            dist_url: `env://`, `tcp://host:port` or `file:///shared/path`.

        Raises:
            OptionError: The meeting point is not usable.
        """
        self.rank, self.world_size, self.local_world_size = (
            launch.rank,
            launch.world_size,
            launch.local_world_size,
        )
        self.store: Store | None = None
        if launch.world_size > 1:
            self.store = _meet(launch, dist_url)
            group_store = PrefixStore("group", self.store)
            dist.init_process_group(
                backend,
                store=group_store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=JOIN_TIMEOUT,
            )
            _wait_until_all_joined(self.store, self.rank, self.world_size)

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is rank 0, the one that logs and saves."""
        return self.rank == 0

    def all_reduce_mean(self, tensor: Tensor) -> Tensor:
        """Mean over processes, in place."""
        return self.all_reduce_mean_async(tensor)()

    def all_reduce_mean_async(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Begin to take the mean over processes, in place; what is given waits for it and gives the tensor.

        It is a sum and a division, because hccl has no mean.
        """
        if self.world_size == 1:
            return lambda: tensor
        work = dist.all_reduce(tensor, async_op=True)

        def finish() -> Tensor:
            work.wait()
            return tensor.div_(self.world_size)

        return finish

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum over processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_rows(self, rows: Tensor, count: int) -> Tensor:
        """Join every process's rows in data set order.

        Args:
            rows: (n, D) of this process: those of images rank, rank + world, rank + 2 world, ...
            count: N over all processes.

        Returns:
            (N, D) on every process.
        """
        if self.world_size == 1:
            return rows
        longest = -(-count // self.world_size)
        padded = rows.new_zeros((longest, *rows.shape[1:]))
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world_size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    def read_from_first(self, name: str, value: str) -> str:
        """The `value` that rank 0 gave under this name, on every process; through the store, so at any time."""
        if self.store is None:
            return value
        if self.is_rank_zero:
            self.store.set(name, value)
        return str(self.store.get(name).decode())

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.world_size > 1:
            dist.barrier()

    def wait_for_all(self, name: str) -> None:
        """Wait for all processes to get to the one place of this name, however long that takes.

        They look in the store, since a collective ends after JOIN_TIMEOUT. A process that failed ends them (failures).
        """
        if self.store is None:
            return
        write(self.store, f"{name}_{self.rank}", "")
        while not all(is_written(self.store, f"{name}_{rank}") for rank in range(self.world_size)):
            time.sleep(LOOK_EVERY)
        self.barrier()  # a moment: nobody leaves, and takes the store along, before all have looked

    @contextlib.contextmanager
    def rank_zero_first(self) -> Iterator[None]:
        """Rank 0 runs the block, then all others: for downloads and generated data."""
        if not self.is_rank_zero:
            self.barrier()
        try:
            yield
        finally:
            if self.is_rank_zero:
                self.barrier()

    def close(self) -> None:
        """Leave the group."""
        if self.world_size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def write(store: Store, key: str, value: str) -> None:
    """Set a key that others look for with `is_written`."""
    store.set(key, value)
    store.add(f"{key} written", 1)


def is_written(store: Store, key: str) -> bool:
    """Whether a key is there, without waiting for it; by a counter, since older torch's stores have no `check`."""
    count: int = store.add(f"{key} written", 0)
    return count > 0


class StopAgreement:
    """All processes stop after the same iteration, agreed through the store and not by a collective a step.

    A process that wants to stop writes so when it next logs; every process reads the store when it logs. The iterations
    between two log lines exchange gradients, so what one wrote at a log line all see at the next.
    """

    KEY = "stop_at_log_line"

    def __init__(self, processes: Processes) -> None:
        """Start without a wish to stop."""
        self.store, self.lines = processes.store, 0

    def check(self, wanted: bool) -> bool:
        """Called by every process at each log line; True means stop now.

        Args:
            wanted: Whether this process got a signal.
        """
        self.lines += 1
        if self.store is None:
            return wanted
        if wanted and not is_written(self.store, self.KEY):
            write(self.store, self.KEY, str(self.lines + 1))
        return is_written(self.store, self.KEY) and self.lines >= int(self.store.get(self.KEY))


def export_launch(launch: Launch, dist_url: str) -> None:
    """Say in torchrun's variables what any launcher said in its own, before a vendor's bridge reads them.

    Raises:
        OptionError: The launcher does not say where to meet.
    """
    if launch.world_size == 1:
        return
    if dist_url == "env://" and "MASTER_ADDR" not in os.environ:
        _name_meeting_point(launch)
    place = {"RANK": launch.rank, "WORLD_SIZE": launch.world_size, "LOCAL_RANK": launch.local_rank}
    for name, value in place.items():
        os.environ.setdefault(name, str(value))


_met: dict[
    tuple[Any, ...], tuple[Store, int]
] = {}  # stores that this process met others over, and its runs there


def _meet(launch: Launch, dist_url: str) -> Store:
    """The store of a run: of a program's later ones that of its first, with names of their own.

    What an earlier run wrote is still there, and a server that closes with one run would take the next one's along.
    """
    place = (launch, dist_url, os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"))
    store, runs = _met.get(place) or (_open_store(launch, dist_url), 0)
    _met[place] = store, runs + 1
    return PrefixStore(f"run_{runs}", store) if runs else store


def _open_store(launch: Launch, dist_url: str) -> Store:
    try:
        store: Store
        store, _, _ = next(
            rendezvous(dist_url, launch.rank, launch.world_size, timeout=JOIN_TIMEOUT)
        )
    except (ValueError, RuntimeError) as error:
        raise OptionError(
            f"`dist_url` {dist_url}: {launch.world_size} processes cannot meet there: {error}",
            value=dist_url,
        ) from error
    return store


def _wait_until_all_joined(store: Store, rank: int, world_size: int) -> None:
    """Nobody goes on before all are in the group: one whose work is done at once would leave while others still join.

    torch waited like this itself once, and does not any more (TORCH_DIST_INIT_BARRIER).
    """
    store.set(f"joined_{rank}", "")
    store.wait([f"joined_{other}" for other in range(world_size)], JOIN_TIMEOUT)


def _name_meeting_point(launch: Launch) -> None:
    """Under srun and mpirun nobody sets MASTER_ADDR; take the first host, and a port of this job's own."""
    jobs = [os.environ[name] for name in JOBS if name in os.environ]
    if "MASTER_PORT" not in os.environ and not jobs:
        raise OptionError(
            "the launcher names no job to derive a port from",
            remedy="set MASTER_ADDR and MASTER_PORT",
        )
    os.environ["MASTER_ADDR"] = (
        "127.0.0.1" if launch.local_world_size == launch.world_size else _first_host()
    )
    os.environ.setdefault("MASTER_PORT", str(20000 + zlib.crc32(" ".join(jobs).encode()) % 20000))


def _first_host() -> str:
    command = ["scontrol", "show", "hostnames", os.environ.get("SLURM_JOB_NODELIST", "")]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise OptionError(
            f"processes on several hosts, and Slurm does not name the first ({error})",
            remedy="set MASTER_ADDR and MASTER_PORT",
        ) from error


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default or "").split("(")[0].split(",")[0]  # Slurm writes "8(x2)"
    try:
        return int(text)
    except ValueError:
        raise OptionError(
            f"the environment's {name}={text!r} is no number", remedy="is the launcher set up?"
        ) from None
