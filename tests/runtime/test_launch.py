"""What launchers say about a process, and how it is passed on."""

import os
import subprocess

import pytest

from dino.errors import OptionError
from dino.runtime import launch
from dino.runtime.launch import LAUNCHERS, Launch, export_launch, read_launch


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


def test_mpirun_is_understood() -> None:
    names = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    environment = {
        f"OMPI_COMM_WORLD_{name}": text
        for name, text in zip(names, ("3", "16", "3", "8"), strict=True)
    }
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


def test_a_launcher_without_local_numbers_is_one_host() -> None:
    assert read_launch({"RANK": "1", "WORLD_SIZE": "2"}) == Launch(
        rank=1, world_size=2, local_rank=0, local_world_size=2
    )


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
    expected = rf"the environment variable {name} must be a whole number \(got '{text}'\)"
    with pytest.raises(OptionError, match=expected):
        read_launch(environment)


@pytest.mark.parametrize(("rank", "world_size"), [("2", "2"), ("-1", "2"), ("0", "0")])
def test_a_rank_outside_the_world_is_refused(rank: str, world_size: str) -> None:
    with pytest.raises(OptionError, match=rf"below WORLD_SIZE={world_size} \(got {rank}\)"):
        read_launch({"RANK": rank, "WORLD_SIZE": world_size})


HOSTS = Launch(rank=1, world_size=4, local_world_size=2)


@pytest.fixture
def unnamed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names neither a meeting point nor a job."""
    meeting, place = (
        ("MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_NODELIST"),
        ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
    )
    for name in (*meeting, *place, *launch.JOBS):
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


@pytest.mark.parametrize("launcher", LAUNCHERS[1:], ids=["mpirun", "srun"])
def test_what_any_launcher_says_is_said_in_torchruns_words(
    unnamed: pytest.MonkeyPatch, launcher: tuple[str, ...]
) -> None:
    """A vendor's bridge reads those, and reads them when it is imported."""
    unnamed.setenv("SLURM_JOB_ID", "7")
    export_launch(read_launch(dict(zip(launcher, ("3", "4", "1", "4"), strict=True))), "env://")
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["3", "4", "1"]
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
