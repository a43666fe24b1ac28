"""Several processes on the CPU, whoever starts them: the same numbers, one end for all, no hang.

Where processes are started by hand, their launcher's variables are set as that launcher sets them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.running import find_port

ROOT = Path(__file__).parents[1]
EPOCHS = 3
EPOCH_STEPS = 16  # 65 images in global batches of 4
DEADLINE = 120  # seconds until processes that hang are given up
DEVICE = ["--device", "cpu", "--num_workers", "0"]
CROPS = "--global_crops_size 32 --local_crops_size 16 --local_crops_number 2 --out_dim 64 --saveckp_freq 0".split()
VIT = f"--arch vit_mini --patch_size 8 --drop_path_rate 0 --epochs {EPOCHS} --warmup_epochs 0 --lr 0.01".split()
RESNET = "--arch resnet18 --epochs 1 --warmup_epochs 0 --freeze_last_layer 0".split()
LAUNCHERS = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_",
    "GROUP_",
    "ROLE_",
    "MASTER_",
    "TORCHELASTIC_",
    "SLURM_",
    "OMPI_",
    "PMI",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """65 labelled images to train on and 15 to score: numbers that two processes cannot share
    evenly."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", 65), ("val", 15)):
        for index in range(count):
            path = folder / split / f"class{index % 4}" / f"{index:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            tinted = rng.integers(0, 156, (32, 32, 3)) + 33 * (index % 4)
            Image.fromarray(tinted.astype(np.uint8)).save(path)
    return folder


def start(*command, **variables):
    """Start a process that no launcher knows of but the one that `variables` play."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(LAUNCHERS)
    }
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=inherited
        | {"OMP_NUM_THREADS": "1"}
        | {name: str(value) for name, value in variables.items()},
        text=True,
    )


def finish(*processes):
    """Wait for processes; gives (exit code, stdout, stderr) of each. None outlives the call."""
    try:
        outputs = [process.communicate(timeout=DEADLINE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [
        (process.returncode, *output) for process, output in zip(processes, outputs, strict=True)
    ]


def start_ranks(*command):
    """Two processes with the variables of torchrun, but without it, so that each one's exit code is
    seen."""
    meeting = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": find_port(),
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
    }
    return [start(*command, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in range(2)]


def torchrun(*command):
    """Two processes under torchrun; its own flags may come before the script."""
    return start("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *command)


def train(images, output, batch, *words):
    """The training command with `batch` images a process."""
    data = [
        "--data_path",
        images / "train",
        "--output_dir",
        output,
        "--batch_size_per_device",
        batch,
    ]
    return ["main_dino.py", *DEVICE, *CROPS, *data, *words]


def read_log(output):
    return [json.loads(line) for line in (output / "log.txt").read_text().splitlines()]


def read_losses(output):
    return [line["train_loss"] for line in read_log(output)]


def read_state(output, name="checkpoint.pth"):
    return torch.load(output / name, weights_only=True)


def compute_distance(found, expected):
    """Relative L2 distance of two sets of weights, all tensors together."""
    pairs = [(found[name].double(), expected[name].double()) for name in expected]
    difference = sum((a - b).square().sum() for a, b in pairs)
    return float((difference / sum(b.square().sum() for _, b in pairs)).sqrt())


def assert_same_weights(output, expected):
    for network in ("student", "teacher"):
        found, wanted = read_state(output)[network], read_state(expected)[network]
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.fixture(scope="module")
def alone(images, tmp_path_factory):
    """Two runs of one process each with the whole batch, started at once."""
    outputs = {name: tmp_path_factory.mktemp(f"alone_{name}") for name in ("vit", "resnet")}
    jobs = (
        start("-X", "importtime", *train(images, outputs["vit"], 4, *VIT)),
        start(*train(images, outputs["resnet"], 16, *RESNET)),
    )
    return outputs, finish(*jobs)


@pytest.fixture(scope="module")
def pair(images, tmp_path_factory):
    """A run of two processes with half the batch each, under torchrun."""
    output = tmp_path_factory.mktemp("pair")
    (ended,) = finish(torchrun(*train(images, output, 2, *VIT)))
    assert ended[0] == 0, ended
    return output


def test_two_jobs_at_once_do_not_collide(alone):
    outputs, ended = alone
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert len(read_log(outputs["vit"])) == EPOCHS and len(read_log(outputs["resnet"])) == 1


def test_a_run_that_compiles_nothing_does_not_import_torchs_compiler(alone):
    """It would take a second of each start."""
    (_, _, imported), _ = alone[1]
    assert "torch.optim" in imported and "torch._dynamo" not in imported


def test_two_processes_give_the_curve_of_one_with_twice_the_batch(alone, pair):
    expected = alone[0]["vit"]
    assert read_losses(pair) == pytest.approx(read_losses(expected), abs=1e-4)
    found, wanted = read_state(pair), read_state(expected)
    assert compute_distance(found["student"], wanted["student"]) < 1e-4
    assert compute_distance(found["teacher"], wanted["teacher"]) < 1e-5
    assert compute_distance(found["dino_loss"], wanted["dino_loss"]) < 1e-3


def test_batch_norm_sees_the_whole_batch_under_the_older_launcher(alone, images, tmp_path):
    """Four steps of a batch-norm backbone on small batches.

    Statistics by an all-reduce round differently from torch's own: 1e-5 in the loss, 6e-5 in the
    student. Where each process normalizes by its own half of the batch, the same four steps differ
    by 6e-3 and 2e-2.
    """
    launcher = [
        "-m",
        "torch.distributed.launch",
        "--nproc_per_node=2",
        f"--master_port={find_port()}",
    ]
    (ended,) = finish(start(*launcher, *train(images, tmp_path, 8, *RESNET)))
    assert ended[0] == 0, ended
    expected = alone[0]["resnet"]
    assert read_losses(tmp_path) == pytest.approx(read_losses(expected), abs=1e-4)
    found, wanted = read_state(tmp_path), read_state(expected)
    assert compute_distance(found["student"], wanted["student"]) < 1e-3
    assert compute_distance(found["teacher"], wanted["teacher"]) < 1e-5


def start_step(*command):
    """Two processes with the variables of a Slurm step, as srun starts them."""
    step = {
        "SLURM_JOB_ID": os.getpid(),
        "SLURM_STEP_ID": 0,
        "SLURM_STEP_NUM_TASKS": 2,
        "SLURM_STEP_TASKS_PER_NODE": 2,
    }
    return [start(*command, SLURM_PROCID=rank, SLURM_LOCALID=rank, **step) for rank in range(2)]


@pytest.mark.long
def test_under_srun_a_signal_to_one_process_stops_both_and_the_same_command_continues(
    pair, images, tmp_path
):
    command = train(images, tmp_path, 2, *VIT)
    ranks = start_step(*command)
    give_up = threading.Timer(DEADLINE, ranks[0].kill)
    give_up.start()
    while "training " not in ranks[0].stdout.readline():
        assert ranks[0].poll() is None, finish(*ranks)
    give_up.cancel()
    ranks[1].send_signal(signal.SIGTERM)
    ended = finish(*ranks)
    assert [code for code, _, _ in ended] == [75, 75], ended

    reasons = ("a signal to another process", "SIGTERM")
    found = [
        re.search(
            rf"^\[rank {rank}\] Interrupted: {reason}: saved iteration (\d+) ", error, re.MULTILINE
        )
        for rank, (reason, (_, _, error)) in enumerate(zip(reasons, ended, strict=True))
    ]
    (stopped,) = {int(match[1]) for match in found}
    names = ("checkpoint.pth", "checkpoint_previous.pth")
    saved = [
        read_state(tmp_path, name)["resume"]["identity"]["iteration"]
        for name in names
        if (tmp_path / name).exists()
    ]
    # The signal may come before the first epoch has ended, and then there is no earlier file.
    epochs_end = range(EPOCH_STEPS, stopped, EPOCH_STEPS)
    assert saved == [stopped, *epochs_end[-1:]], "saved once more since the epoch"

    ended = finish(*start_step(*command))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert f"continuing from {tmp_path / 'checkpoint.pth'} at iteration {stopped}" in ended[0][1]
    assert ended[1][1] == ""  # only rank 0 speaks
    assert read_log(tmp_path) == read_log(pair)
    assert_same_weights(tmp_path, pair)


def find_worker(torchrun, rank):
    """The process id of a rank below torchrun, or None until it is there."""
    below = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
    for child in below:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return int(child)
    return None


@pytest.mark.long
@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGTERM])
def test_a_torchrun_restart_continues_from_the_last_checkpoint(pair, images, tmp_path, blow):
    job = torchrun("--max-restarts=1", *train(images, tmp_path, 2, *VIT))
    give_up = threading.Timer(DEADLINE, job.kill)
    give_up.start()
    while not (tmp_path / "checkpoint.pth").exists():
        assert job.poll() is None, finish(job)
        time.sleep(0.002)
    give_up.cancel()
    os.kill(find_worker(job, 1), blow)
    ((code, output, error),) = finish(job)
    assert code == 0, error
    assert f"continuing from {tmp_path / 'checkpoint.pth'} at iteration " in output
    assert read_log(tmp_path) == read_log(pair)
    assert_same_weights(tmp_path, pair)


def test_a_wrong_flag_ends_all_processes_with_one_line_each(images, tmp_path):
    command = train(images, tmp_path, 2, "--archh", "vit_mini")
    for rank, (code, output, error) in enumerate(finish(*start_ranks(*command))):
        expected = f"[rank {rank}] OptionError: unknown flag --archh: did you mean --arch?\n"
        assert (code, output, error) == (2, "", expected)


def test_a_wrong_flag_under_torchrun_ends_it(images, tmp_path):
    began = time.monotonic()
    ((code, _, error),) = finish(torchrun(*train(images, tmp_path, 2, "--archh", "vit_mini")))
    assert code != 0 and time.monotonic() - began < DEADLINE / 2
    lines = re.findall(r"^\[rank \d\] OptionError: .*", error, re.MULTILINE)
    assert 1 <= len(lines) <= 2 and len(set(lines)) == len(
        lines
    )  # torchrun may end the slower one before it speaks


def test_two_processes_score_like_one(pair, images):
    command = [
        "eval_knn.py",
        *DEVICE,
        "--arch",
        "vit_mini",
        "--patch_size",
        "8",
        "--pretrained_weights",
    ]
    command += [
        pair / "checkpoint.pth",
        "--data_path",
        images,
        "--batch_size_per_device",
        "4",
        "--nb_knn",
        "3",
        "20",
    ]
    ended = finish(start(*command), *start_ranks(*command))
    assert [code for code, _, _ in ended] == [0, 0, 0], ended
    one, first, second = (
        re.findall(r"^\d+-NN classifier result: .*", output, re.MULTILINE) for _, output, _ in ended
    )
    assert len(one) == 2 and first == one and second == []
