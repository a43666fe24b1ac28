"""What launchers say about a process, and how it is passed on."""

import os
import subprocess

import pytest

from dino.errors import OptionError
from dino.runtime import launch
from dino.runtime.launch import LAUNCHERS, SLURM, TORCHRUN, Launch, export_launch, read_launch


def test_without_a_launcher_a_process_is_alone() -> None:
    assert read_launch({}) == Launch()
    assert (
        read_launch({"PATH": "/bin", "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"})
        == Launch()
    )


def test_torchrun_is_understood() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert read_launch(environment) == Launch(
        rank=5, world_size=8, local_rank=1, local_world_size=4
    )


@pytest.mark.parametrize("launcher", LAUNCHERS[1:-1], ids=lambda names: names[2])
def test_mpirun_is_understood(launcher: tuple[str, ...]) -> None:
    environment = dict(zip(launcher, ("3", "16", "3", "8"), strict=True))
    assert read_launch(environment) == Launch(
        rank=3, world_size=16, local_rank=3, local_world_size=8
    )


@pytest.mark.parametrize(("tasks", "here"), [("8(x2)", 8), ("4,3", 4), ("8", 8), ("2(x3),1", 2)])
def test_srun_is_understood(tasks: str, here: int) -> None:
    environment = {
        "SLURM_PROCID": "2",
        "SLURM_STEP_NUM_TASKS": "7",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": tasks,
    }
    assert read_launch(environment) == Launch(
        rank=2, world_size=7, local_rank=1, local_world_size=here
    )


def test_torchrun_inside_an_allocation_wins_over_slurm() -> None:
    slurm = {
        "SLURM_PROCID": "0",
        "SLURM_STEP_NUM_TASKS": "1",
        "SLURM_LOCALID": "0",
        "SLURM_STEP_TASKS_PER_NODE": "1",
    }
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
    assert read_launch({**slurm, **torchrun}).rank == 3


def test_mpirun_that_starts_its_daemons_with_srun_wins_over_slurm() -> None:
    """Each daemon is a task of a Slurm step, and the processes inherit its variables."""
    daemon = dict(zip(SLURM, ("1", "2", "0", "1(x2)"), strict=True))
    hydra = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}
    assert read_launch({**daemon, **hydra}) == Launch(
        rank=5, world_size=8, local_rank=1, local_world_size=4
    )


def test_srun_with_pmi_keeps_its_local_numbers() -> None:
    step = dict(zip(SLURM, ("5", "8", "1", "4(x2)"), strict=True))
    for more in ({"PMI_RANK": "5", "PMI_SIZE": "8"}, {"PMIX_RANK": "5"}, {"WORLD_SIZE": "8"}):
        assert read_launch({**step, **more}) == Launch(
            rank=5, world_size=8, local_rank=1, local_world_size=4
        )


def test_a_pod_of_pytorchjob_is_a_host_with_one_process() -> None:
    pod = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456"}
    assert read_launch({**pod, "PET_NNODES": "2"}) == Launch(rank=1, world_size=2)


def test_a_launcher_with_a_local_rank_alone_may_have_all_processes_on_this_host() -> None:
    environment = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    assert read_launch(environment) == Launch(
        rank=1, world_size=2, local_rank=1, local_world_size=2
    )


@pytest.mark.parametrize(
    ("environment", "told", "missing"),
    [
        *(({names[0]: "0"}, f"{names[0]}=0", names[1]) for names in LAUNCHERS[:-1]),
        *(({names[1]: "2"}, f"{names[1]}=2", names[0]) for names in LAUNCHERS),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, "SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS"),
        (
            {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"},
            "SLURM_PROCID=0",
            "SLURM_STEP_NUM_TASKS",
        ),
        ({"PMIX_RANK": "0", "PMIX_NAMESPACE": "prterun-1"}, "PMIX_RANK=0", "WORLD_SIZE"),
        ({"PALS_RANKID": "0"}, "PALS_RANKID=0", "WORLD_SIZE"),
        ({"MPI_LOCALRANKID": "0"}, "MPI_LOCALRANKID=0", "WORLD_SIZE"),
        ({"PET_NNODES": "2", "PET_NODE_RANK": "0"}, "PET_NNODES=2", "RANK"),
        ({"PET_NNODES": "1:4"}, "PET_NNODES=1:4", "RANK"),
    ],
)
def test_a_launcher_that_says_half_is_refused_on_every_rank(
    environment: dict[str, str], told: str, missing: str
) -> None:
    """Otherwise each process would be a run of its own, all in one output folder."""
    with pytest.raises(OptionError, match=f"^{told} tells of .* {missing} is not set; set RANK"):
        read_launch(environment)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "1"},
        {"PET_NNODES": "1"},
        {"SLURM_NTASKS": "8"},  # a shell of salloc
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_ID": "4294967291"},  # sbatch
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"},
    ],
)
def test_what_may_be_a_single_process_is_one(environment: dict[str, str]) -> None:
    assert read_launch(environment) == Launch()


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("text", ["", "two", "1.5"])
def test_a_variable_that_is_no_number_is_named(name: str, text: str) -> None:
    environment = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "2",
        name: text,
    }
    expected = rf"the environment variable {name} must be a whole number.* \(got '{text}'\)"
    with pytest.raises(OptionError, match=expected):
        read_launch(environment)


@pytest.mark.parametrize(("rank", "world_size"), [("2", "2"), ("-1", "2"), ("0", "0")])
def test_a_rank_outside_the_world_is_refused(rank: str, world_size: str) -> None:
    with pytest.raises(OptionError, match=rf"below WORLD_SIZE={world_size} \(got {rank}\)"):
        read_launch({"RANK": rank, "WORLD_SIZE": world_size})


@pytest.mark.parametrize(("name", "text"), [("LOCAL_RANK", "-1"), ("LOCAL_WORLD_SIZE", "0")])
def test_a_local_number_that_cannot_be_is_refused(name: str, text: str) -> None:
    environment = {**dict(zip(TORCHRUN, ("0", "2", "0", "2"), strict=True)), name: text}
    with pytest.raises(OptionError, match=rf"{name} must be a whole number of at least"):
        read_launch(environment)


HOSTS = Launch(rank=1, world_size=4, local_world_size=2)


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names neither a meeting point nor a job."""
    meeting = ("MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_NODELIST")
    for name in (*meeting, *TORCHRUN, *launch.JOBS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


def test_a_job_without_a_name_is_asked_for_a_meeting_point(unnamed: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        OptionError, match="names no job to derive a port from; set MASTER_ADDR and MASTER_PORT"
    ):
        export_launch(HOSTS, "env://")


@pytest.mark.parametrize("path", ["/nowhere", None])
def test_several_hosts_that_slurm_does_not_name_are_asked_for_a_meeting_point(
    unnamed: pytest.MonkeyPatch, path: str | None
) -> None:
    """Neither without Slurm's command nor where it fails."""
    unnamed.setenv("PMIX_NAMESPACE", "prterun-host-1@1")
    if path:
        unnamed.setenv("PATH", path)
    else:
        unnamed.setattr(launch.subprocess, "run", fail_to_run)
    with pytest.raises(
        OptionError, match="Slurm does not name the first .*; set MASTER_ADDR and MASTER_PORT"
    ):
        export_launch(HOSTS, "env://")


@pytest.mark.parametrize("launcher", LAUNCHERS[1:], ids=lambda names: names[2])
def test_what_any_launcher_says_is_said_in_torchruns_words(
    unnamed: pytest.MonkeyPatch, launcher: tuple[str, ...]
) -> None:
    """A vendor's bridge reads those, and reads them when it is imported; so does a second run."""
    unnamed.setenv("SLURM_JOB_ID", "7")
    unnamed.setenv("WORLD_SIZE", "8")  # half a word of another launcher
    told = read_launch(dict(zip(launcher, ("3", "4", "1", "2"), strict=True)))
    unnamed.setenv("MASTER_ADDR", "first")
    export_launch(told, "env://")
    assert [os.environ[name] for name in TORCHRUN] == ["3", "4", "1", "2"]
    assert read_launch(os.environ) == told


def test_processes_of_one_host_meet_there(unnamed: pytest.MonkeyPatch) -> None:
    unnamed.setenv("PBS_JOBID", "7")
    export_launch(Launch(rank=1, world_size=2, local_world_size=2), "env://")
    assert os.environ["MASTER_ADDR"] == "127.0.0.1" and os.environ["MASTER_PORT"]


def fail_to_run(command: list[str], **_: object) -> None:
    raise subprocess.CalledProcessError(1, command)


def test_each_job_and_each_step_has_a_port_of_its_own(unnamed: pytest.MonkeyPatch) -> None:
    ports = []
    for variables in (
        {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"},
        {"SLURM_STEP_ID": "1"},
        {"SLURM_JOB_ID": "8"},
    ):
        for name, value in variables.items():
            unnamed.setenv(name, value)
        export_launch(Launch(rank=0, world_size=2, local_world_size=2), "env://")
        assert os.environ["MASTER_ADDR"] == "127.0.0.1"
        ports.append(int(os.environ["MASTER_PORT"]))
        unnamed.delenv("MASTER_ADDR")
        unnamed.delenv("MASTER_PORT")
    assert len(set(ports)) == 3 and all(20000 <= port < 40000 for port in ports)
