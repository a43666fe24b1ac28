"""The launcher: which place it gives this process, and how it learns why the process ends."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dino.errors import OptionError


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process's rank on all hosts and on its own host."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


# Rank, world size, local rank and local world size. The first launcher that gives all four wins,
# because mpirun starts its daemons with srun; torchrun, which runs under either, needs only two.
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # and PyTorchJob, DeepSpeed
# Slurm's variables are those of a step: a script that runs python in an allocation without srun is
# a single process.
SLURM = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
LAUNCHERS = (
    TORCHRUN,
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    (
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
        "MV2_COMM_WORLD_LOCAL_RANK",
        "MV2_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI
    ("PMI_RANK", "PMI_SIZE", "PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),  # Cray
    (
        "JSM_NAMESPACE_RANK",
        "JSM_NAMESPACE_SIZE",
        "JSM_NAMESPACE_LOCAL_RANK",
        "JSM_NAMESPACE_LOCAL_SIZE",
    ),
    SLURM,
)
# Set by launchers that do not tell a process how many there are.
WITHOUT_SIZE = ("PMIX_RANK", "PALS_RANKID", "ALPS_APP_PE", "MPI_LOCALRANKID")
PODS = "PET_NNODES"  # "2" or "1:4", in pods that Kubeflow prepares for torchrun
VARIABLES = frozenset((*(name for names in LAUNCHERS for name in names), *WITHOUT_SIZE, PODS))
RESERVED_STEPS = 0xFFFFFFF0  # from here on Slurm numbers batch scripts and interactive shells


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Read this process's position from the environment; without a launcher it is the only one.

    Without any local number there is one process per host, as in the pods of PyTorchJob.

    Raises:
        OptionError: A launcher's variable is missing or not a number, or the rank is outside the
            world.
    """
    told = [names for names in LAUNCHERS if names[0] in environment and names[1] in environment]
    if not told:
        _refuse_traces(environment)
        return Launch()
    rank, world_size, local_rank, local_world_size = max(
        told, key=lambda names: names is TORCHRUN or environment.keys() >= {*names}
    )
    here = environment[world_size] if local_rank in environment else "1"
    launch = Launch(
        rank=_number(environment, rank),
        world_size=_number(environment, world_size),
        local_rank=_number(environment, local_rank, "0", least=0),
        local_world_size=_number(environment, local_world_size, here, least=1),
    )
    if not 0 <= launch.rank < launch.world_size:
        raise OptionError(
            f"{rank} must be at least 0 and below {world_size}={launch.world_size} "
            f"(got {launch.rank})"
        )
    return launch


def _refuse_traces(environment: Mapping[str, str]) -> None:
    """Refuse a process that a launcher started without saying its rank and the number of ranks.

    Raises:
        OptionError: The text names the variable that tells of a launcher, and the missing one.
    """
    for rank, world_size, *_ in LAUNCHERS:
        if rank in environment and (rank != SLURM[0] or _is_step(environment)):
            raise _missing(environment, rank, world_size)
        if environment.get(world_size, "1") != "1":
            raise _missing(environment, world_size, rank)
    for name in WITHOUT_SIZE:
        if name in environment:
            raise _missing(environment, name, "WORLD_SIZE")
    if environment.get(PODS, "1").split(":")[-1] != "1":
        raise _missing(environment, PODS, "RANK")


def _is_step(environment: Mapping[str, str]) -> bool:
    """Whether srun started one of several processes; a batch script is process 0 of no step."""
    step = environment.get("SLURM_STEP_ID", environment.get("SLURM_STEPID", ""))
    numbered = step.isdecimal() and int(step) < RESERVED_STEPS
    several = numbered and environment.get("SLURM_NTASKS") != "1"
    return several or environment[SLURM[0]] != "0"


def _missing(environment: Mapping[str, str], name: str, missing: str) -> OptionError:
    return OptionError(
        f"{name}={environment[name]} tells of a launcher, but {missing} is not set",
        remedy="set RANK and WORLD_SIZE (0 and 1 for a single process), or use torchrun",
    )


# Variables that identify a job.
JOBS = (
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "PMIX_NAMESPACE",
    "OMPI_MCA_ess_base_jobid",
    "PBS_JOBID",
    "LSB_JOBID",
    "PALS_APID",
)


def tell_launcher(line: str) -> None:
    """Write why this process ends where torchrun reads it for its report of the root cause."""
    path, now = os.environ.get("TORCHELASTIC_ERROR_FILE"), str(int(time.time()))
    message = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": now}}
    with contextlib.suppress(OSError):
        if path:
            Path(path).write_text(json.dumps({"message": message}), encoding="utf-8")


def export_launch(launch: Launch, dist_url: str) -> None:
    """Set torchrun's variables from any launcher's, before a vendor's bridge reads them.

    Raises:
        OptionError: The launcher does not name a meeting point.
    """
    if launch.world_size == 1:
        return
    if dist_url == "env://" and "MASTER_ADDR" not in os.environ:
        _name_meeting_point(launch)
    numbers = (launch.rank, launch.world_size, launch.local_rank, launch.local_world_size)
    for name, value in zip(TORCHRUN, numbers, strict=True):
        os.environ[name] = str(value)


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


def _number(
    environment: Mapping[str, str], name: str, default: str = "", *, least: int | None = None
) -> int:
    text = environment.get(name, default).split("(")[0].split(",")[0]  # Slurm writes "8(x2)"
    with contextlib.suppress(ValueError):
        if least is None or int(text) >= least:
            return int(text)
    expected = "a whole number" + ("" if least is None else f" of at least {least}")
    raise OptionError(
        f"the environment variable {name} must be {expected} (got {text!r})",
        remedy="check how the processes are launched",
    )
