"""Jobs: two tasks of submitit's local executor train together and survive a timeout; what Slurm is
asked for.

The timeout is what submitit's local controller makes of one: SIGUSR2 to every task. Slurm itself is
played by two scripts named srun and sbatch, so its part ends with the file that sbatch would read.
"""

import json
import os
import pickle
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import run_with_submitit
from dino.cli import submission
from dino.cli.options import as_words, parse, parse_command
from dino.cli.session import exit_code
from dino.cli.submission import RequeueRequest, SubmitConfig, TrainingTask
from dino.errors import Interrupted
from dino.runtime.signals import StopRequest
from dino.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
EPOCHS, ITERATIONS = 6, 4
TINY = (
    "--device cpu --arch vit_mini --patch_size 8 --global_crops_size 32 --local_crops_size 16 --local_crops_number 2 "
    f"--out_dim 64 --batch_size_per_device 8 --epochs {EPOCHS} --num_workers 0 --saveckp_freq 0"
).split()
DEADLINE = 120  # seconds until a job that hangs is given up

pytest.importorskip("submitit")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(64):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(
            folder / f"{index:02}.png"
        )
    return folder


class LocalJob:
    """A job on this machine, submitted by the script; everything it started ends with the test."""

    def __init__(self, folder, output, *words):
        command = [
            sys.executable,
            ROOT / "run_with_submitit.py",
            "--cluster",
            "local",
            "--nodes",
            "1",
            "--ngpus",
            "2",
        ]
        self.script = subprocess.Popen(
            [*command, "--output_dir", output, *TINY, *words],
            stdout=subprocess.PIPE,
            cwd=folder,  # not the project's folder
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            text=True,
            start_new_session=True,
        )
        self.line = self.script.stdout.readline()
        assert self.line.startswith("submitted job "), self.line
        self.number = int(self.line.split()[2])
        self.output, self.files = (
            folder / output.replace("%j", str(self.number)),
            folder / "runs" / "submitit",
        )

    def wait_for(self, path):
        deadline = time.monotonic() + DEADLINE
        while not (path.exists() and path.stat().st_size):  # an empty log.txt is from the start
            assert time.monotonic() < deadline, f"no {path}: {self.log(0, 'err')}"
            time.sleep(0.05)

    def time_out(self):
        for pid in Path(f"/proc/{self.number}/task/{self.number}/children").read_text().split():
            os.kill(int(pid), signal.SIGUSR2)

    def wait(self):
        for rank in range(2):
            self.wait_for(self.files / f"{self.number}_{rank}_result.pkl")
        return self.script.wait(DEADLINE)

    def log(self, rank, stream="out"):
        return (self.files / f"{self.number}_{rank}_log.{stream}").read_text()

    def epochs(self):
        return [json.loads(line) for line in (self.output / "log.txt").read_text().splitlines()]

    def end(self):
        try:
            os.killpg(self.script.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.script.stdout.close()
        self.script.wait(DEADLINE)


@pytest.fixture
def start(images):
    jobs = []

    def start_job(*where):
        jobs.append(LocalJob(*where, "--data_path", images))
        return jobs[-1]

    yield start_job
    for job in jobs:
        job.end()


@pytest.mark.long
def test_two_tasks_train_together_and_go_on_after_a_timeout(start, tmp_path):
    """That the result is that of a run without the interruption, bit for bit, is test_launch's
    affair."""
    job = start(tmp_path, "runs/%j")
    job.wait_for(job.output / "log.txt")
    job.time_out()
    job.wait()

    assert "2 processes" in job.log(0)
    stopped = int(re.search(r"Interrupted: SIGUSR1: saved iteration (\d+) ", job.log(0, "err"))[1])
    assert 0 < stopped < EPOCHS * ITERATIONS
    assert "Requeued job" in job.log(0) and "Not checkpointing nor requeuing" in job.log(1)
    assert f"at iteration {stopped}\n" in job.log(0)
    assert [epoch["epoch"] for epoch in job.epochs()] == list(range(EPOCHS))
    assert torch.load(job.output / "checkpoint.pth", weights_only=True)["epoch"] == EPOCHS
    results = [pickle.loads(file.read_bytes()) for file in job.files.glob("*_result.pkl")]
    assert results == [("success", None)] * 2


def run_script(monkeypatch, *words):
    """Exit code of the script, in this process."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))  # the script changes it
    return exit_code(lambda: run_with_submitit.main(words))


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--epoch", "3"], "unknown flag --epoch: did you mean --epochs?"),
        (["--node", "3"], "unknown flag --node: did you mean --nodes?"),
        (["--epochs", "many"], "--epochs must be a whole number (got 'many')"),
        (["--nodes", "0"], "--nodes must be >= 1 (got 0)"),
        (["--cluster", "moon"], "must be one of slurm, local"),
        (["--cluster", "local", "--nodes", "2"], "Use nodes=1"),
        (["--dist_url", "tcp://host:1"], "--dist_url is not allowed here"),
    ],
)
def test_wrong_flags_stop_before_submission(words, complaint, monkeypatch, capfd, tmp_path):
    output = tmp_path / "output"
    assert run_script(monkeypatch, "--output_dir", str(output), *words) == 2
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1 and complaint in captured.err
    assert not list(tmp_path.rglob("*.pkl")) and not list(tmp_path.rglob("*.sh"))


def test_a_wrong_flag_is_exit_code_2_of_the_process(tmp_path):
    ended = subprocess.run(
        [sys.executable, ROOT / "run_with_submitit.py", "--archh", "vit_mini"],
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "OptionError: unknown flag --archh: did you mean --arch?\n"


def test_without_submitit_the_remedy_is_named(monkeypatch, capfd, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert run_script(monkeypatch, "--output_dir", str(tmp_path / "output")) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and "pip install submitit" in error


@pytest.fixture
def slurm(monkeypatch, tmp_path):
    """A cluster that takes every job and gives it the number 4711; calls give the lines for
    sbatch."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("srun", "sbatch"):
        (commands / name).write_text("#!/bin/sh\necho Submitted batch job 4711\n")
        (commands / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)

    def submit(*words):
        assert run_script(monkeypatch, *words) == 0
        (file,) = tmp_path.rglob("4711_submission.sh")
        lines = file.read_text().splitlines()
        return {
            line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")
        }, file

    return submit


def test_slurm_is_asked_for_what_the_original_asks_for(slurm, capfd):
    lines, file = slurm("--data_path", "demo")
    wanted = {
        "nodes=2",
        "ntasks-per-node=8",
        "gpus-per-node=8",
        "time=2800",
        "partition=learnfair",
        "cpus-per-task=10",
    }
    assert wanted | {"signal=USR2@120", "mem=320GB", "job-name=dino"} <= lines
    assert not any(line.startswith(("constraint", "comment", "gres")) for line in lines)
    assert (
        file.parent == Path.cwd() / "output" / "submitit"
    )  # and not in output/4711, not known before
    assert capfd.readouterr().out == (
        f"submitted job 4711 to slurm; log lines in {file.with_name('4711_0_log.out')}\n"
    )


@pytest.mark.parametrize(
    ("words", "wanted", "absent"),
    [
        (
            "--device cuda --ngpus 4 --use_volta32",
            {"gpus-per-node=4", "constraint=volta32gb"},
            ("comment",),
        ),
        (
            "--device hpu --comment hi",
            {"gres=hpu:8", "comment=hi"},
            ("gpus-per-node", "constraint"),
        ),
        ("--device hpu --ngpus 4 --gres gpu:hl225", {"gres=gpu:hl225:4"}, ("gpus-per-node",)),
        ("--gres gpu:a100 --ngpus 2", {"gres=gpu:a100:2"}, ("gpus-per-node",)),
        (
            "--device cpu --ngpus 2 --num_workers 3",
            {"ntasks-per-node=2", "cpus-per-task=3"},
            ("gpus", "gres"),
        ),
    ],
)
def test_slurm_is_asked_for_the_device(words, wanted, absent, slurm):
    lines, _ = slurm("--output_dir", "here", *words.split())
    assert wanted <= lines
    assert not any(line.startswith(word) for line in lines for word in absent)


def test_a_cpu_run_asks_for_no_devices(slurm, monkeypatch, capfd):
    assert run_script(monkeypatch, "--device", "cpu", "--gres", "gpu") == 2
    assert (
        "--gres gpu requests devices that --device cpu does not use; leave it out"
        in capfd.readouterr().err
    )


def test_slurm_that_refuses_a_job_is_one_line(slurm, monkeypatch, capfd, tmp_path):
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho no such partition >&2\nexit 1\n")
    assert run_script(monkeypatch, "--partition", "nowhere") == 2
    error = capfd.readouterr().err
    assert "the job cannot be submitted" in error and "no such partition" in error


def test_words_carry_what_flags_and_recipe_say(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "lr: 0.0003\nnodes: 3\nglobal_crops_scale: [0.25, 1.0]\nhmp: true\nnorm_last_layer: false\ncompile: false\n"
    )
    given = [
        "--config",
        str(recipe),
        "--epochs",
        "7",
        "--batch_size_per_gpu",
        "3",
        "--comment",
        "a b",
    ]
    options, named, _ = parse_command(SubmitConfig, given)
    words = as_words(TrainConfig, options, named)
    assert (
        "--hmp" in words and "--epochs=7" in words and not any("comment" in word for word in words)
    )
    again, given, _ = parse_command(TrainConfig, words)
    for group in TrainConfig.__dataclass_fields__:
        assert getattr(again, group) == getattr(options, group)
    assert given == named - {"nodes", "comment"}


@pytest.fixture
def own_signals():
    """What a test does to the handlers is undone."""
    names = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
    before = {name: signal.getsignal(name) for name in names}
    yield
    for name, handler in before.items():
        signal.signal(name, handler)


@pytest.fixture
def job(monkeypatch, own_signals):
    """Rank 3 of a Slurm job of 2 nodes with 2 processes each, as submitit starts it."""
    places = {
        "SLURM_JOB_ID": 7,
        "SLURM_NTASKS": 4,
        "SLURM_JOB_NUM_NODES": 2,
        "SLURM_PROCID": 3,
        "SLURM_LOCALID": 1,
    }
    for name, value in {"SUBMITIT_EXECUTOR": "slurm", **places}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("SLURM_RESTART_COUNT", raising=False)
    monkeypatch.setattr(submission, "SIGNAL_DELAY", 0)
    handled = []
    signal.signal(signal.SIGUSR2, lambda number, frame: handled.append(number))
    return handled


def build_task(command):
    return TrainingTask(
        command=command, words=("--epochs=1",), output="/shared/%j", meeting="/shared/meeting"
    )


def test_a_task_tells_the_run_its_place(job, monkeypatch):
    seen = []
    task = build_task(lambda words: seen.append(parse(TrainConfig, words)))
    task()
    assert [
        os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    ] == list("3412")
    again = task.checkpoint().function
    again()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    again()
    assert {options.run.output_dir for options in seen} == {"/shared/7"} and seen[0].run.epochs == 1
    meetings = {options.launch.dist_url for options in seen}
    assert len(meetings) == 3
    assert all(meeting.startswith("file:///shared/meeting_") for meeting in meetings)


def train(*numbers):
    """A training command whose loop gets signals and, if it notices, saves and leaves."""

    def command(_words):
        with StopRequest().listening() as stop:
            for number in numbers:
                signal.raise_signal(number)
            if stop:
                raise Interrupted("saved")

    return build_task(command)


@pytest.mark.parametrize(
    ("numbers", "code", "handled"),
    [
        ([signal.SIGUSR2], 0, [signal.SIGUSR2]),
        ([signal.SIGTERM, signal.SIGUSR2], 0, [signal.SIGUSR2]),
        ([signal.SIGTERM], 75, []),
        ([signal.SIGUSR1], 75, []),
    ],
)
def test_only_the_clusters_signal_queues_again_and_only_after_the_save(numbers, code, handled, job):
    with pytest.raises(SystemExit) as ended:
        train(*numbers)()
    assert ended.value.code == code
    assert job == handled


def test_a_signal_before_the_loop_goes_to_submitit_at_once(job):
    def command(_words):
        signal.raise_signal(signal.SIGUSR2)
        assert job == [signal.SIGUSR1]

    build_task(command)()


def test_the_loops_own_signal_may_be_the_clusters(own_signals):
    handled = []
    signal.signal(signal.SIGUSR1, lambda number, frame: handled.append(number))
    request = RequeueRequest(signal.SIGUSR1)
    with pytest.raises(SystemExit):
        request.finish(slurm=True)
    assert handled == [signal.SIGUSR1]
