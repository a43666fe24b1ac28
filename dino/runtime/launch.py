"""This process's place among the others, as its launcher's environment describes it."""

from __future__ import annotations

import os
import subprocess
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from dino.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process's rank on all hosts and on its own host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


# Rank, world size, local rank and local world size for torchrun (and torch.distributed.launch),
# mpirun and srun. Slurm's variables are those of a step: a script that runs python in an allocation
# without srun is a single process.
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
    """Read this process's position from the environment; without a launcher it is the only one.

    Raises:
        OptionError: A launcher's variable is not a number, or the rank is outside the world.
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
                    f"{rank} must be at least 0 and below {world_size}={launch.world_size} "
                    f"(got {launch.rank})"
                )
            return launch
    return Launch()


# Variables that identify a job.
JOBS = ("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")


def export_launch(launch: Launch, dist_url: str) -> None:
    """Set torchrun's variables from any launcher's, before a vendor's bridge reads them.

    Raises:
        OptionError: The launcher does not name a meeting point.
    """
    if launch.world_size == 1:
        return
    if dist_url == "env://" and "MASTER_ADDR" not in os.environ:
        _name_meeting_point(launch)
    numbers = (launch.rank, launch.world_size, launch.local_rank)
    for name, value in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), numbers, strict=True):
        os.environ.setdefault(name, str(value))


def _name_meeting_point(launch: Launch) -> None:
    """Set MASTER_ADDR to the first host and derive a port from the job; srun and mpirun do not."""
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
            f"processes run on several hosts, and Slurm does not name the first ({error})",
            remedy="set MASTER_ADDR and MASTER_PORT",
        ) from error


def _number(environment: Mapping[str, str], name: str, default: str | None = None) -> int:
    text = environment.get(name, default or "").split("(")[0].split(",")[0]  # Slurm writes "8(x2)"
    try:
        return int(text)
    except ValueError:
        raise OptionError(
            f"the environment variable {name} must be a whole number (got {text!r})",
            remedy="check how the processes are launched",
        ) from None
