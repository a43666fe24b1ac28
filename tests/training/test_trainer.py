"""Whole runs: what they write, how they end, and that an interrupted one continues as if nothing
had happened."""

from __future__ import annotations

import csv
import errno
import functools
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dino import checkpoint
from dino.config import RECIPE
from dino.errors import CheckpointError
from dino.runtime.folder_lock import LOCK_FILE, hold_folder
from dino.training.tags import GROUPS
from tests.running import (
    TINY,
    Job,
    Result,
    lines_of,
    make_images,
    make_labelled,
    state_of,
    train,
    train_pair,
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty noise images in a flat folder."""
    return make_images(tmp_path_factory.mktemp("images"), 40)


def assert_equal(left: object, right: object, path: str = "") -> None:
    """Bit for bit, through nested containers; options may differ, since commands may."""
    assert type(left) is type(right), path
    if isinstance(left, torch.Tensor):
        assert torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left.keys() - {"args"}:
            assert_equal(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, list):
        assert len(left) == len(right), path
        for index, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{path}/{index}")
    else:
        assert left == right, path


def test_a_run_writes_what_the_original_writes(images: Path, tmp_path: Path) -> None:
    result = train(
        tmp_path, "--data_path", images, "--output_dir", tmp_path / "run", "--saveckp_freq", 1
    )
    assert result.code == 0, result.text
    lines = lines_of(tmp_path / "run")
    assert [line["epoch"] for line in lines] == [0, 1]
    assert {
        "train_loss",
        "train_lr",
        "train_wd",
        "epoch",
        "train_entropy",
        "train_feature_std",
    } <= lines[0].keys()
    state = state_of(tmp_path / "run")
    originals = {"student", "teacher", "optimizer", "epoch", "args", "dino_loss"}
    assert originals | {"normalisation", "resume", "format"} == state.keys()
    assert (
        state["epoch"] == 2
        and state["args"]["arch"] == "vit_mini"
        and state["dino_loss"]["center"].shape == (1, 16)
    )
    assert all(name.startswith(("module.backbone.", "module.head.")) for name in state["student"])
    assert {"head.last_layer.weight_g", "head.last_layer.weight_v", "backbone.cls_token"} <= state[
        "teacher"
    ].keys()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {
        "checkpoint.pth",
        "checkpoint0000.pth",
        "checkpoint0001.pth",
        "teacher_backbone.pth",
        "teacher_backbone.safetensors",
        "log.txt",
    } <= names
    small = torch.load(tmp_path / "run" / checkpoint.TEACHER, weights_only=True)
    assert_equal(
        small["teacher"], {k: v for k, v in state["teacher"].items() if k.startswith("backbone.")}
    )


def test_tensorboard_holds_the_references_tags_and_the_monitors(
    images: Path, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(tmp_path, "--data_path", images, "--output_dir", tmp_path / "run").code == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    tags = set(events.Tags()["scalars"])
    assert {"examples/sec", "iter_time", "data_time", "loss", "lr", "wd"} <= tags
    assert {"entropy", "feature_std", "centre_norm", "grad_norm", "divergence"} <= tags
    assert [event.step for event in events.Scalars("loss")] == [10, 20]
    assert {group for tag, group in GROUPS.items() if tag in tags} <= tags
    for tag, grouped in (("loss", "train/loss"), ("data_time", "data/time")):
        assert [event.value for event in events.Scalars(tag)] == [
            event.value for event in events.Scalars(grouped)
        ]
    (text,) = events.Tensors("recipe/text_summary")
    recipe = (tmp_path / "run" / RECIPE).read_text(encoding="utf-8")
    assert text.tensor_proto.string_val[0].decode() == f"```yaml\n{recipe}\n```"
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_the_same_command_twice_gives_the_same_bits(images: Path, tmp_path: Path) -> None:
    for name, workers in (("one", 0), ("two", 2)):
        words = ("--data_path", images, "--output_dir", tmp_path / name, "--num_workers", workers)
        assert train(tmp_path, *words).code == 0
    assert_equal(state_of(tmp_path / "one"), state_of(tmp_path / "two"))


@pytest.mark.long
def test_twenty_kills_leave_no_trace(images: Path, tmp_path: Path) -> None:
    """kill -9 at random moments, some while a checkpoint is being written: the end is that of an
    undisturbed run."""
    words = [
        "--data_path",
        str(images),
        "--epochs",
        "4",
        "--save_every_steps",
        "1",
        "--drop_path_rate",
        "0.2",
        "--log_to",
        "jsonl",
        "csv",
    ]
    undisturbed = train(tmp_path, *words, "--output_dir", tmp_path / "whole")
    assert undisturbed.code == 0, undisturbed.text
    rng, kills, writing = random.Random(0), 0, 0
    for attempt in range(200):
        job = Job(
            tmp_path,
            [
                *TINY,
                *words,
                "--output_dir",
                str(tmp_path / "killed"),
                "--num_workers",
                str(attempt % 2),
            ],
        )
        if kills < 20:
            writing += _kill_soon(job, tmp_path / "killed", rng, while_writing=attempt % 3 == 0)
        result = job.wait()
        kills += result.code == -signal.SIGKILL
        assert result.code in (0, -signal.SIGKILL), result.text
        if result.code == 0:
            break
    assert kills == 20 and writing >= 3
    assert_equal(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "killed")
    assert _metrics_of(tmp_path / "whole") == _metrics_of(tmp_path / "killed")


def _metrics_of(folder: Path) -> list[tuple[int, float | None, list[str]]]:
    """Iteration, rate and tags of each line of metrics.jsonl; metrics.csv holds the same.

    The first line after a kill averages over the steps since, so its loss is another one.
    """
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    with (folder / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    cells = [{tag: float(cell) for tag, cell in row.items() if cell} for row in rows]
    assert cells == [
        {tag: part for tag, part in line.items() if part is not None} for line in lines
    ]
    return [(line["iteration"], line.get("train/lr"), sorted(line)) for line in lines]


def _kill_soon(job: Job, folder: Path, rng: random.Random, *, while_writing: bool) -> bool:
    """Kill a run a moment after it made progress; gives whether a half-written file was left
    behind."""
    latest = folder / checkpoint.LATEST
    before = latest.stat().st_mtime_ns if latest.exists() else 0
    while job.process.is_alive():
        if latest.exists() and latest.stat().st_mtime_ns != before:
            break
        time.sleep(0.002)
    if while_writing:
        while job.process.is_alive() and not list(folder.glob(".*.tmp")):
            time.sleep(0.0005)
    else:
        time.sleep(rng.random() * 0.1)
    job.kill()
    job.process.join()
    return bool(list(folder.glob(".*.tmp")))


def narrow_vgg() -> None:
    """vgg11 as it is, but a sixteenth as wide: its 130 million weights would take a gigabyte a
    checkpoint."""
    from types import SimpleNamespace

    from torch import nn
    from torchvision.models import vgg

    class Narrow(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs // 16, outputs // 16)

    vgg.cfgs["A"] = [kind if kind == "M" else kind // 16 for kind in vgg.cfgs["A"]]
    vgg.nn = SimpleNamespace(**{**vars(nn), "Linear": Narrow})


@pytest.mark.parametrize(
    ("arch", "prepare"),
    [("vgg11", narrow_vgg), ("timm:test_convnext", None)],
    ids=["torchvision's dropout", "timm's stochastic depth"],
)
def test_a_network_that_draws_by_itself_is_killed_and_continues_to_the_bit(
    images: Path, tmp_path: Path, arch: str, prepare: Callable[[], None] | None
) -> None:
    words = [
        "--data_path",
        str(images),
        "--arch",
        arch,
        "--save_every_steps",
        "3",
    ]
    words += ["--global_crops_size", "32", "--local_crops_size", "32", "--epochs", "1"]
    whole = train(tmp_path, *words, "--output_dir", tmp_path / "whole", prepare=prepare)
    assert whole.code == 0, whole.text
    latest = tmp_path / "killed" / checkpoint.LATEST
    job = Job(tmp_path, [*TINY, *words, "--output_dir", str(tmp_path / "killed")], prepare)
    while not latest.exists() and job.process.is_alive():
        time.sleep(0.002)
    job.kill()
    assert job.wait().code == -signal.SIGKILL
    again = train(tmp_path, *words, "--output_dir", tmp_path / "killed", prepare=prepare)
    assert again.code == 0 and "continuing from" in again.text, again.text
    assert_equal(state_of(tmp_path / "whole"), state_of(tmp_path / "killed"))


def say_seeds() -> None:
    """Print a line at each seeding."""
    from dino.devices.cpu import CpuDevice

    CpuDevice.seed = lambda self, value: (torch.manual_seed(value), print("seeded"))


@pytest.mark.parametrize(
    ("arch", "seedings"), [("vit_mini", 1), ("resnet18", 1), ("timm:test_convnext", 11)]
)
def test_only_a_network_that_draws_by_itself_is_seeded_at_every_step(
    images: Path, tmp_path: Path, arch: str, seedings: int
) -> None:
    """Once for the weights; on a Gaudi each seeding waits."""
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 1, "--arch", arch)
    sizes = ("--global_crops_size", 32, "--local_crops_size", 32)
    result = train(tmp_path, *words, *sizes, prepare=say_seeds)
    assert result.code == 0 and result.text.count("seeded") == seedings, result.text


def dawdle() -> None:
    """After the tenth step each takes so long that a signal from outside finds the run."""
    from dino.training import step

    whole, calls = step.compute_loss, []

    def slow(*tensors: torch.Tensor, **more: Any) -> torch.Tensor:
        calls.append(1)
        time.sleep(len(calls) > 10)
        return whole(*tensors, **more)

    step.compute_loss = slow


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_with_75_and_the_rest_follows(
    images: Path, tmp_path: Path, name: int
) -> None:
    words = ["--data_path", str(images), "--epochs", "3"]
    job = Job(tmp_path, [*TINY, *words, "--output_dir", str(tmp_path / "stopped")], dawdle)
    while "10/30" not in job.text() and job.process.is_alive():
        time.sleep(0.01)
    job.kill(name)
    stopped = job.wait()
    assert stopped.code == 75 and "the same command continues" in stopped.text, stopped.text
    position = state_of(tmp_path / "stopped")["resume"]["identity"]["iteration"]
    assert 10 <= position < 30
    again = train(tmp_path, *words, "--output_dir", tmp_path / "stopped")
    assert (
        again.code == 0
        and f"continuing from {tmp_path / 'stopped' / checkpoint.LATEST}" in again.text
    )
    whole = train(tmp_path, *words, "--output_dir", tmp_path / "whole")
    assert whole.code == 0
    assert_equal(state_of(tmp_path / "whole"), state_of(tmp_path / "stopped"))


WRITES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.truncate"}


def turn_read_only(folder: str, step_number: int) -> None:
    """From a step on, the file system refuses writes below `folder`, as after a kernel has met an
    error of the disk: new files, new names, and files that are open already. 0: from the start."""
    from dino.runtime.sinks import tensorboard as events
    from dino.training import step

    compute, append, calls = step.compute_loss, events.append_whole, []

    def check(writes: bool) -> None:
        if writes and len(calls) >= step_number:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def hear(event: str, args: tuple[Any, ...]) -> None:
        changes = event in WRITES or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR))
        check(changes and str(args[0]).startswith(folder))

    step.compute_loss = lambda *tensors, **more: calls.append(1) or compute(*tensors, **more)
    events.append_whole = lambda *both: check(True) or append(*both)
    sys.addaudithook(hear)


def write_two_steps_later() -> None:
    """Each checkpoint waits until training has gone two steps on, as far as there are steps."""
    from dino.training.trainer import Trainer

    after, save, steps = Trainer._after_step, checkpoint.save_latest, []

    def count(trainer: Trainer) -> None:
        steps.append(trainer.iteration)
        after(trainer)

    def save_later(folder: Path, state: dict[str, Any]) -> None:
        until = min(state["resume"]["identity"]["iteration"] + 2, 20)
        while until not in steps:
            time.sleep(0.002)
        save(folder, state)

    Trainer._after_step, checkpoint.save_latest = count, save_later


def test_steps_taken_while_a_checkpoint_is_written_are_not_in_it(
    images: Path, tmp_path: Path
) -> None:
    words = ("--data_path", images, "--saveckp_freq", 1)
    for name, prepare in (("plain", None), ("later", write_two_steps_later)):
        result = train(tmp_path, *words, "--output_dir", tmp_path / name, prepare=prepare)
        assert result.code == 0, result.text
    for name in ("checkpoint0000.pth", "checkpoint0001.pth", checkpoint.TEACHER):
        both = [checkpoint.load_file(tmp_path / folder / name) for folder in ("plain", "later")]
        assert_equal(*both)


def fill_the_disk_after_the_first_save() -> None:
    save, calls = checkpoint.save_latest, []

    def save_or_fail(folder: Path, state: dict[str, Any]) -> None:
        calls.append(state)
        if len(calls) > 1:
            raise CheckpointError("no space left")
        save(folder, state)

    checkpoint.save_latest = save_or_fail


def test_a_checkpoint_that_cannot_be_written_ends_the_run_at_the_next_log_line(
    images: Path, tmp_path: Path
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--save_every_steps", 3)
    result = train(tmp_path, *words, prepare=fill_the_disk_after_the_first_save)
    assert result.code == 2 and "no space left" in result.text, result.text
    assert "Traceback" not in result.text and iteration_of(tmp_path / "run") == 3
    assert train(tmp_path, *words).code == 0 and iteration_of(tmp_path / "run") == 20


def test_a_disk_that_turns_read_only_costs_lines_and_not_the_last_checkpoint(
    images: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    words = ("--data_path", images, "--output_dir", folder)
    words += ("--log_to", "tensorboard", "jsonl", "csv")
    stopped = train(tmp_path, *words, prepare=functools.partial(turn_read_only, str(folder), 13))
    assert stopped.code == 2 and "Traceback" not in stopped.text, stopped.text
    assert stopped.text.count("cannot be written to: Read-only file system; lines are lost") == 1
    assert f"{folder}/checkpoint_previous.pth cannot be written ([Errno 30] Read-o" in stopped.text
    assert iteration_of(folder) == 10 and [line["epoch"] for line in lines_of(folder)] == [0]
    assert_refused(
        train(tmp_path, *words, prepare=functools.partial(turn_read_only, str(folder), 0)),
        [str(folder), "Read-only file system"],
    )
    assert train(tmp_path, *words).code == 0
    assert [line["epoch"] for line in lines_of(folder)] == [0, 1]


def run_once(images: Path, tmp_path: Path) -> Path:
    """A finished run of one epoch, to be continued."""
    assert (
        train(tmp_path, "--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 1).code
        == 0
    )
    return tmp_path / "run"


def test_a_truncated_checkpoint_falls_back_to_the_one_before(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 3)
    assert train(tmp_path, *words).code == 0
    latest = tmp_path / "run" / checkpoint.LATEST
    latest.write_bytes(latest.read_bytes()[:5000])
    result = train(tmp_path, *words)
    assert result.code == 0, result.text
    assert "damaged" in result.text and "at iteration 20" in result.text
    assert (tmp_path / "run" / "checkpoint.pth.damaged").exists()


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a moment of one number": (
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.zeros(1)),
        "optimizer.state.0.exp_avg must be",
    ),
    "a NaN": (
        lambda state: state["teacher"]["backbone.norm.bias"].fill_(torch.nan),
        "teacher.backbone.norm.bias holds NaN",
    ),
    "a far iteration": (
        lambda state: state["resume"]["identity"].update(iteration=10**9),
        "iteration 1000000000 of 10 an epoch is not in epoch 2",
    ),
}


def test_a_checkpoint_that_is_damaged_inside_falls_back_to_the_one_before(
    images: Path, tmp_path: Path
) -> None:
    """The damaged one is set aside each time, and one without a predecessor is refused."""
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 2)
    assert train(tmp_path, *words).code == 0
    latest, before = (tmp_path / "run" / n for n in (checkpoint.LATEST, checkpoint.PREVIOUS))
    whole = {path: path.read_bytes() for path in (latest, before)}
    for damage, reason in DAMAGE.values():
        state = state_of(tmp_path / "run")
        damage(state)
        torch.save(state, latest)
        result = train(tmp_path, *words)
        assert result.code == 0 and reason in result.text, result.text
        assert "at iteration 10" in result.text
        assert latest.with_name("checkpoint.pth.damaged").exists()
        for path, content in whole.items():
            path.unlink()
            path.write_bytes(content)
    torch.save(state, latest)
    before.unlink()
    assert_refused(train(tmp_path, *words), ["iteration 1000000000", "another --output_dir"])


def test_a_moment_that_repeats_one_number_continues_with_memory_of_its_own(
    images: Path, tmp_path: Path
) -> None:
    """Its shape is right and its memory is one number, which a fused kernel would run past."""
    folder = run_once(images, tmp_path)
    state = state_of(folder)
    moments = state["optimizer"]["state"]
    for entry in moments.values():
        entry["exp_avg"] = torch.zeros(1).expand(entry["exp_avg"].shape)
        entry["exp_avg_sq"] = entry["exp_avg"]
    (folder / checkpoint.LATEST).unlink()
    torch.save(state, folder / checkpoint.LATEST)
    result = train(tmp_path, "--data_path", images, "--output_dir", folder, "--epochs", 2)
    assert result.code == 0 and "at iteration 10" in result.text, result.text
    assert all(
        entry["exp_avg"].is_contiguous() and not torch.equal(entry["exp_avg"], entry["exp_avg_sq"])
        for entry in state_of(folder)["optimizer"]["state"].values()
    )


def test_a_file_that_no_training_wrote_is_refused(images: Path, tmp_path: Path) -> None:
    folder = run_once(images, tmp_path)
    shutil.copy(folder / checkpoint.TEACHER, folder / checkpoint.LATEST)
    result = train(tmp_path, "--data_path", images, "--output_dir", folder)
    assert_refused(result, ["not a training checkpoint", "student"])


def test_a_folder_is_one_runs_at_a_time_and_holds_no_file_but_its_own(
    images: Path, tmp_path: Path
) -> None:
    """Notes of the user and the console stay; fewer epochs than done leave the recipe alone."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.txt").write_bytes(b"my notes")
    words = ("--data_path", images, "--output_dir", folder)
    with hold_folder(folder, first=True):
        refused = train(tmp_path, *words, "--epochs", 2)
        assert_refused(refused, ["belongs to another run", f"pid {os.getpid()}", "sign of life"])
        assert {path.name for path in folder.iterdir()} == {"log.txt", LOCK_FILE}
    assert train(tmp_path, *words, "--epochs", 2).code == 0
    notes, *lines = (folder / "log.txt").read_bytes().splitlines()
    assert notes == b"my notes" and [json.loads(line)["epoch"] for line in lines] == [0, 1]
    before = {name: (folder / name).read_bytes() for name in (RECIPE, "log.txt")}
    fewer = train(tmp_path, *words, "--epochs", 1)
    assert fewer.code == 0 and "done" not in fewer.text
    assert f"{folder}/checkpoint.pth has 2 epochs, --epochs 1 asks for fewer" in fewer.text
    assert before == {name: (folder / name).read_bytes() for name in before}
    assert not (folder / LOCK_FILE).exists()


@pytest.mark.parametrize(
    ("flag", "value", "old"),
    [
        ("--arch", "vit_tiny", "vit_mini"),
        ("--patch_size", "4", "8"),
        ("--out_dim", "32", "16"),
        ("--optimizer", "sgd", "adamw"),
    ],
)
def test_another_run_is_refused_with_old_and_new_value(
    images: Path, tmp_path: Path, flag: str, value: str, old: str
) -> None:
    folder = run_once(images, tmp_path)
    result = train(
        tmp_path, "--data_path", images, "--output_dir", folder, "--epochs", 2, flag, value
    )
    assert result.code == 2 and old in result.text and value in result.text, result.text


def test_other_images_are_refused_and_the_same_ones_elsewhere_are_not(
    images: Path, tmp_path: Path
) -> None:
    folder = run_once(images, tmp_path)
    other = make_images(tmp_path / "other", 44)
    refused = train(tmp_path, "--data_path", other, "--output_dir", folder, "--epochs", 2)
    assert refused.code == 2 and "images 40" in refused.text and "44" in refused.text
    moved = shutil.copytree(images, tmp_path / "moved")
    assert train(tmp_path, "--data_path", moved, "--output_dir", folder, "--epochs", 2).code == 0


def test_more_epochs_and_another_batch_at_an_epochs_end_are_allowed_and_printed(
    images: Path, tmp_path: Path
) -> None:
    folder = run_once(images, tmp_path)
    longer = train(tmp_path, "--data_path", images, "--output_dir", folder, "--epochs", 2)
    assert longer.code == 0 and "epochs 1 -> 2" in longer.text
    batch = train(
        tmp_path,
        "--data_path",
        images,
        "--output_dir",
        folder,
        "--epochs",
        3,
        "--batch_size_per_device",
        8,
    )
    assert (
        batch.code == 0
        and "not bit-identical" in batch.text
        and "global batch 4 -> 8" in batch.text
    )


def test_another_batch_inside_an_epoch_is_refused(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    assert train(tmp_path, *words, prepare=stop_in_third_step).code == 75
    assert iteration_of(tmp_path / "run") == 3
    result = train(tmp_path, *words, "--batch_size_per_device", 8)
    assert result.code == 2 and "3 iterations into epoch 0" in result.text, result.text


def test_a_run_that_lost_a_process_continues_inside_the_epoch_with_the_same_images(
    images: Path, tmp_path: Path
) -> None:
    words = ("--data_path", images, "--drop_path_rate", 0, "--norm_last_layer", "false")
    whole, lost = (words + ("--output_dir", tmp_path / name) for name in ("whole", "lost"))
    assert [result.code for result in train_pair(tmp_path, *whole)] == [0, 0]
    ended = train_pair(tmp_path, *lost, "--save_every_steps", 3, prepare=(kill_at_four, None))
    assert ended[0].code == -signal.SIGKILL and iteration_of(tmp_path / "lost") == 3
    alone = train(tmp_path, *lost, "--batch_size_per_device", 8)
    assert alone.code == 0 and "continuing at iteration 3 with the same images" in alone.text
    both = [state_of(tmp_path / name)["teacher"] for name in ("whole", "lost")]
    for name, tensor in both[0].items():
        torch.testing.assert_close(tensor, both[1][name], rtol=0, atol=2e-5)
    losses = [[line["train_loss"] for line in lines_of(tmp_path / n)] for n in ("whole", "lost")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def kill_at_four() -> None:
    from dino.training.trainer import Trainer

    after = Trainer._after_step

    def kill(trainer: Trainer) -> None:
        after(trainer)
        if trainer.iteration == 4:
            trainer.saver.wait()
            os.kill(os.getpid(), signal.SIGKILL)

    Trainer._after_step = kill


def test_computing_again_changes_no_bit(images: Path, tmp_path: Path) -> None:
    states = []
    for what in ("nothing", "mlp", "blocks"):
        result = train(
            tmp_path, "--data_path", images, "--output_dir", tmp_path / what, "--recompute", what
        )
        assert result.code == 0, result.text
        states.append(state_of(tmp_path / what))
    for name in ("student", "teacher", "optimizer"):
        assert_equal(states[0][name], states[1][name])
        assert_equal(states[0][name], states[2][name])


def break_loss() -> None:
    """From now on the loss of every step is NaN."""
    from dino.training import step

    whole = step.compute_loss
    step.compute_loss = lambda *tensors, **more: whole(*tensors, **more) * float("nan")


def break_two_steps() -> None:
    """The loss of the third and fourth step is NaN."""
    from dino.training import step

    whole, calls = step.compute_loss, []

    def sometimes(*tensors: torch.Tensor, **more: Any) -> torch.Tensor:
        calls.append(1)
        return whole(*tensors, **more) * (float("nan") if len(calls) in (3, 4) else 1.0)

    step.compute_loss = sometimes


def test_five_non_finite_steps_in_a_row_end_the_run_and_nothing_is_saved(
    images: Path, tmp_path: Path
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--save_every_steps", 1)
    result = train(tmp_path, *words, prepare=break_loss)
    assert result.code == 3 and "5 steps in a row were not finite" in result.text, result.text
    assert not (tmp_path / "run" / checkpoint.LATEST).exists()


def test_single_non_finite_steps_are_skipped_and_counted(images: Path, tmp_path: Path) -> None:
    result = train(
        tmp_path, "--data_path", images, "--output_dir", tmp_path / "run", prepare=break_two_steps
    )
    assert result.code == 0 and "skipped steps 2" in result.text, result.text
    state = state_of(tmp_path / "run")
    assert state["resume"]["program"]["non_finite"].tolist() == [2.0, 0.0]
    assert all(tensor.isfinite().all() for tensor in state["student"].values())


def stop_in_step(number: int, name: signal.Signals = signal.SIGTERM, times: int = 1) -> None:
    """A signal arrives while a step, from 1, computes."""
    from dino.training import step

    whole, calls = step.compute_loss, []

    def signaled(*tensors: torch.Tensor, **more: Any) -> torch.Tensor:
        calls.append(1)
        for _ in range(times if len(calls) == number else 0):
            os.kill(os.getpid(), name)
        return whole(*tensors, **more)

    step.compute_loss = signaled


stop_in_third_step = functools.partial(stop_in_step, 3)


def stop_in_third_step_which_is_broken() -> None:
    """The same, and the loss of the third and fourth step is NaN."""
    break_two_steps()
    stop_in_third_step()


def iteration_of(folder: Path) -> int:
    return state_of(folder)["resume"]["identity"]["iteration"]


@pytest.mark.parametrize(
    "every", [0, 3], ids=["between two checkpoints", "where a checkpoint is due"]
)
def test_a_single_process_leaves_after_the_step_in_which_the_signal_came(
    images: Path, tmp_path: Path, every: int
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--save_every_steps", every)
    result = train(tmp_path, *words, prepare=stop_in_third_step)
    assert result.code == 75 and "SIGTERM: saved iteration 3 in" in result.text, result.text
    assert iteration_of(tmp_path / "run") == 3


@pytest.mark.parametrize(("name", "code"), [(signal.SIGHUP, 75), (signal.SIGINT, 130)])
def test_a_terminals_signal_saves_too(
    images: Path, tmp_path: Path, name: signal.Signals, code: int
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    result = train(tmp_path, *words, prepare=functools.partial(stop_in_step, 3, name))
    assert result.code == code and f"{name.name}: saved iteration 3 in" in result.text, result.text
    assert iteration_of(tmp_path / "run") == 3


@pytest.mark.parametrize(
    ("stop", "code", "said"),
    [
        ((1, signal.SIGINT), 130, "stopped by Ctrl-C; nothing is saved\n"),
        ((1, signal.SIGHUP), 129, ""),
        ((3, signal.SIGINT, 2), 130, "stopped by Ctrl-C; saved is iteration 2 in "),
    ],
    ids=["Ctrl-C in the first step", "hung up in the first step", "second Ctrl-C"],
)
def test_a_run_that_ends_at_once_says_what_is_saved(
    images: Path, tmp_path: Path, stop: tuple[Any, ...], code: int, said: str
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--save_every_steps", 2)
    result = train(tmp_path, *words, prepare=functools.partial(stop_in_step, *stop))
    assert result.code == code and said in result.text, result.text
    assert "Traceback" not in result.text and "saved iteration" not in result.text
    assert (tmp_path / "run" / checkpoint.LATEST).exists() == (stop[0] > 1)


def stop_while_scoring() -> None:
    """Ctrl-C while the teacher is scored; the epoch is already saved."""
    from dino.training.scores import Scores

    Scores.__call__ = lambda *_: signal.raise_signal(signal.SIGINT)


def test_ctrl_c_while_scoring_ends_at_once_and_says_what_is_saved(tmp_path: Path) -> None:
    data = make_labelled(tmp_path / "data", {"train": 10, "val": 4})
    words = ("--data_path", data / "train", "--output_dir", tmp_path / "run")
    result = train(tmp_path, *words, "--eval_knn_every", 1, prepare=stop_while_scoring)
    assert result.code == 130, result.text
    assert "stopped by Ctrl-C; saved is iteration 5 in " in result.text, result.text
    assert iteration_of(tmp_path / "run") == 5


def test_processes_leave_together_one_log_line_after_the_signal_was_seen(
    images: Path, tmp_path: Path
) -> None:
    """The signal of iteration 3 is seen at the line of iteration 5, the last of an epoch; the next
    is at 10."""
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 8)
    results = train_pair(tmp_path, *words, prepare=(None, stop_in_third_step))
    assert [result.code for result in results] == [75, 75], [result.text for result in results]
    assert "a signal to another process: saved iteration 10 in" in results[0].text
    assert iteration_of(tmp_path / "run") == 10


def test_a_signal_in_a_non_finite_step_waits_for_the_next_finite_one(
    images: Path, tmp_path: Path
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    result = train(tmp_path, *words, prepare=stop_in_third_step_which_is_broken)
    assert result.code == 75 and "SIGTERM: saved iteration 5 in" in result.text, result.text
    assert [f"iteration {number} is not saved" in result.text for number in (2, 3, 4, 5)] == [
        False,
        True,
        True,
        False,
    ]
    assert iteration_of(tmp_path / "run") == 5


def test_the_state_after_a_single_non_finite_step_is_not_saved(
    images: Path, tmp_path: Path
) -> None:
    words = (
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "run",
        "--epochs",
        1,
        "--save_every_steps",
        1,
    )
    result = train(tmp_path, *words, prepare=break_two_steps)
    assert result.code == 0, result.text
    assert [f"iteration {number} is not saved" in result.text for number in (2, 3, 4, 5)] == [
        False,
        True,
        True,
        False,
    ]


def break_four_steps() -> None:
    """The loss of steps 7 to 10 is NaN, so four in a row at the first log line."""
    from dino.training import step

    whole, calls = step.compute_loss, []

    def sometimes(*tensors: torch.Tensor, **more: Any) -> torch.Tensor:
        calls.append(1)
        return whole(*tensors, **more) * (float("nan") if 7 <= len(calls) <= 10 else 1.0)

    step.compute_loss = sometimes


def test_four_non_finite_steps_in_a_row_do_not_end_the_run(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    result = train(tmp_path, *words, prepare=break_four_steps)
    assert result.code == 0, result.text
    assert state_of(tmp_path / "run")["resume"]["program"]["non_finite"].tolist() == [4.0, 0.0]


@pytest.mark.parametrize(("prepare", "code"), [(break_two_steps, 0), (break_loss, 3)])
def test_all_processes_decide_alike_when_one_is_not_finite(
    images: Path, tmp_path: Path, prepare: Callable[[], None], code: int
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 4)
    results = train_pair(tmp_path, *words, prepare=(None, prepare))
    assert [result.code for result in results] == [code, code], [result.text for result in results]
    if code == 0:
        state = state_of(tmp_path / "run")
        assert state["resume"]["program"]["non_finite"].tolist() == [2.0, 0.0]
        assert all(tensor.isfinite().all() for tensor in state["student"].values())


def flatten_teacher() -> None:
    """The teacher's outputs are all zero, so uniform after the softmax."""
    from dino.training import step

    whole = step.compute_targets
    step.compute_targets = lambda logits, center, temperature: whole(
        logits * 0, center * 0, temperature
    )


def fix_teacher() -> None:
    """The teacher always names the first prototype."""
    from dino.training import step

    whole = step.compute_targets

    def constant(
        logits: torch.Tensor, center: torch.Tensor, temperature: torch.Tensor
    ) -> step.TeacherTargets:
        return whole(torch.eye(16)[:1].expand_as(logits), center * 0, temperature)

    step.compute_targets = constant


@pytest.mark.parametrize(
    ("prepare", "kind"),
    [(flatten_teacher, "uniform collapse"), (fix_teacher, "constant collapse"), (None, None)],
)
def test_each_kind_of_collapse_is_named_within_one_log_window(
    images: Path, tmp_path: Path, prepare: object, kind: str | None
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 1)
    settled = ("--warmup_epochs", 0, "--freeze_last_layer", 0, "--momentum_teacher", 0)
    text = train(tmp_path, *words, *settled, prepare=prepare).text
    assert [name in text for name in ("uniform collapse", "constant collapse")] == [
        kind == "uniform collapse",
        kind == "constant collapse",
    ], text
    assert kind is None or "try" in text


def test_a_corrupt_image_stops_the_run_or_is_replaced_and_counted(
    images: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    (folder / "007.png").write_bytes(b"no picture")
    words = ("--data_path", folder, "--output_dir", tmp_path / "run")
    stopped = train(tmp_path, *words)
    assert stopped.code == 2 and "007.png" in stopped.text and "--on_bad_image skip" in stopped.text
    assert "Traceback" not in stopped.text
    skipped = train(tmp_path, *words, "--on_bad_image", "skip")
    assert skipped.code == 0 and "007.png" in skipped.text
    assert lines_of(tmp_path / "run")[-1]["bad_images"] == 2


def test_images_replaced_by_any_process_are_counted(images: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(images, tmp_path / "images")
    for name in ("003.png", "007.png", "020.png"):
        (folder / name).write_bytes(b"no picture")
    words = ("--data_path", folder, "--output_dir", tmp_path / "run", "--on_bad_image", "skip")
    words += ("--log_to", "jsonl")
    for result in train_pair(tmp_path, *words, "--save_every_steps", 3):
        assert result.code == 0, result.text
    assert [line["bad_images"] for line in lines_of(tmp_path / "run")] == [3, 6]
    written = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()  # by one process
    lines = [json.loads(line) for line in written]
    assert [line["iteration"] for line in lines if "train/loss" in line] == [5, 10]


def test_pictures_of_every_odd_kind_train_and_broken_ones_are_named(
    shared_data: Path, tmp_path: Path
) -> None:
    """All of `broken/`: those that decode are used, the rest are replaced, named in a line and
    counted."""
    folder = shared_data / "broken"
    words = (
        "--data_path",
        folder,
        "--output_dir",
        tmp_path / "run",
        "--batch_size_per_device",
        1,
        "--epochs",
        1,
    )
    result = train(tmp_path, *words, "--on_bad_image", "skip")
    assert result.code == 0 and "constant collapse" not in result.text, result.text
    named = {path.name for path in folder.iterdir() if path.is_file() and path.name in result.text}
    assert {"zero_byte.jpg", "text.jpg", "html_404.jpg", "truncated_header.jpg"} <= named
    assert not named & {
        "good.jpg",
        "cmyk.jpg",
        "gray_16bit.png",
        "alpha_rgba.png",
        "exif_orientation_6.jpg",
    }
    assert lines_of(tmp_path / "run")[-1]["bad_images"] == len(named)


def test_numbered_checkpoints_are_kept_as_many_as_asked_for(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 4)
    assert train(tmp_path, *words, "--saveckp_freq", 1, "--keep_checkpoints", 2).code == 0
    numbered = sorted((tmp_path / "run").glob("checkpoint0*.pth"))
    assert [path.name for path in numbered] == ["checkpoint0002.pth", "checkpoint0003.pth"]
    assert [torch.load(path, weights_only=True)["epoch"] for path in numbered] == [3, 4]


def test_online_knn_is_logged_and_leaves_the_training_as_it_is(tmp_path: Path) -> None:
    root = make_labelled(tmp_path / "data", {"train": 12, "validation": 6})
    words = ("--data_path", root / "train")
    with_score = train(tmp_path, *words, "--output_dir", tmp_path / "with", "--eval_knn_every", 1)
    without = train(tmp_path, *words, "--output_dir", tmp_path / "without")
    assert with_score.code == without.code == 0, with_score.text
    assert all({"knn_top1", "knn_top5"} <= line.keys() for line in lines_of(tmp_path / "with"))
    assert_equal(state_of(tmp_path / "with"), state_of(tmp_path / "without"))


def test_own_views_are_logged_and_leave_the_training_as_it_is(images: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ("--data_path", images, "--epochs", 3)
    scored = train(tmp_path, *words, "--output_dir", tmp_path / "with", "--own_view_images", 8)
    without = train(tmp_path, *words, "--output_dir", tmp_path / "without")
    assert scored.code == without.code == 0, scored.text
    states = [state_of(tmp_path / name) for name in ("with", "without")]
    scores, none = (state["resume"].pop("scores") for state in states)
    assert_equal(*states)
    assert none == {"level": 0, "start": {}, "latest": {}, "best": {}, "rose": False}
    lines = lines_of(tmp_path / "with")
    assert ["own_view" in line for line in lines] == [False, True, True]  # 8 of 40: every 2 epochs
    assert {name: lines[-1][name] for name in ("own_view", "rankme")} == scores["latest"]
    events = EventAccumulator(str(tmp_path / "with" / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("own_view")] == [0, 20, 30]
    assert [event.value for event in events.Scalars("rankme")] == pytest.approx(
        [scores["start"]["rankme"], lines[1]["rankme"], lines[2]["rankme"]]
    )
    assert f"own view {lines[1]['own_view']:.0f}%  images/s" in scored.text
    assert f"; own views found: {lines[2]['own_view']:.1f} %, before training " in scored.text
    assert "checkpoint.pth; no verdict" in without.text


def test_a_resumed_run_keeps_its_scores(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--own_view_images", 4, "--save_every_steps", 5)
    assert train(tmp_path, *words, "--output_dir", tmp_path / "whole").code == 0
    killed = functools.partial(stop_in_step, 15, signal.SIGKILL)
    assert train(tmp_path, *words, "--output_dir", tmp_path / "run", prepare=killed).code == -9
    again = train(tmp_path, *words, "--output_dir", tmp_path / "run")
    assert again.code == 0 and "continuing from" in again.text, again.text
    assert_equal(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")


def script_scores() -> None:
    """Own-view scores of 50, 60, 40 and 30 % after the epochs; the run is killed as it keeps the
    second best."""
    from dino.training.scores import Scores

    def score(self: Any, _: object, epoch: int) -> dict[str, float]:
        values = {"own_view": (50.0, 60.0, 40.0, 30.0)[epoch]}
        self._note_best(values)
        return values

    Scores.__call__ = score


def script_scores_and_kill() -> None:
    script_scores()
    keep, calls = checkpoint.keep_best, []

    def keep_or_die(path: Path) -> None:
        calls.append(path)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        keep(path)

    checkpoint.keep_best = keep_or_die


def test_the_best_checkpoint_stays_even_if_a_kill_came_before_it_was_kept(
    images: Path, tmp_path: Path
) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 4)
    words += ("--keep_best", "own_view", "--own_view_images", 4, "--saveckp_freq", 1)
    killed = train(tmp_path, *words, prepare=script_scores_and_kill)
    best = tmp_path / "run" / checkpoint.BEST
    assert killed.code == -signal.SIGKILL and checkpoint.load_file(best)["epoch"] == 1
    again = train(tmp_path, *words, prepare=script_scores)
    assert again.code == 0 and "at iteration 20" in again.text, again.text
    kept = checkpoint.load_file(best)
    assert kept["epoch"] == 2 and kept["resume"]["scores"]["best"] == {"own_view": 60.0}
    assert state_of(tmp_path / "run")["resume"]["scores"]["best"] == {"own_view": 60.0}


def test_an_epoch_is_not_lost_with_its_score(tmp_path: Path) -> None:
    """A validation image that cannot be read stops the run; once mended, the epoch is scored and
    not trained again."""
    root = make_labelled(tmp_path / "data", {"train": 12, "val": 6})
    words = ("--data_path", root / "train", "--eval_knn_every", 2)
    assert train(tmp_path, *words, "--output_dir", tmp_path / "whole").code == 0
    picture = root / "val" / "ant" / "000.png"
    pixels = picture.read_bytes()
    picture.write_bytes(b"no picture")
    stopped = train(tmp_path, *words, "--output_dir", tmp_path / "run")
    assert stopped.code == 2 and "000.png" in stopped.text, stopped.text
    assert [line["epoch"] for line in lines_of(tmp_path / "run")] == [0]
    picture.write_bytes(pixels)
    continued = train(tmp_path, *words, "--output_dir", tmp_path / "run")
    assert continued.code == 0 and "at iteration 12" in continued.text, continued.text
    assert lines_of(tmp_path / "run") == lines_of(tmp_path / "whole")
    assert_equal(state_of(tmp_path / "run"), state_of(tmp_path / "whole"))


def test_init_from_starts_a_new_run_from_weights(images: Path, tmp_path: Path) -> None:
    source = run_once(images, tmp_path)
    words = ("--data_path", images, "--output_dir", tmp_path / "new", "--lr", 0, "--min_lr", 0)
    result = train(tmp_path, *words, "--epochs", 1, "--init_from", source / checkpoint.LATEST)
    assert result.code == 0 and "--init_from" in result.text, result.text
    state = state_of(tmp_path / "new")
    assert state["epoch"] == 1
    assert torch.allclose(
        state["teacher"]["backbone.cls_token"], state_of(source)["teacher"]["backbone.cls_token"]
    )


def test_a_run_of_the_original_continues_here(images: Path, tmp_path: Path) -> None:
    """The original's file: options as a namespace, learning rates as numpy numbers, nothing under
    `resume`."""
    import argparse

    import numpy as np

    folder = run_once(images, tmp_path)
    state = state_of(folder)
    del state["resume"], state["normalisation"]
    state["args"] = argparse.Namespace(
        **{k: v for k, v in state["args"].items() if k in ("arch", "patch_size", "out_dim")}
    )
    for group in state["optimizer"]["param_groups"]:
        group.pop("last_layer"), group.pop("decayed")
        group["lr"] = np.float64(0.001)
    torch.save(state, folder / checkpoint.LATEST)
    result = train(tmp_path, "--data_path", images, "--output_dir", folder, "--epochs", 2)
    assert result.code == 0 and "the original's: continuing at epoch 1" in result.text, result.text
    assert [line["epoch"] for line in lines_of(folder)] == [0, 1]


@pytest.mark.parametrize("count", [0, 3])
def test_any_number_of_local_crops_trains(images: Path, tmp_path: Path, count: int) -> None:
    words = (
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "run",
        "--epochs",
        1,
        "--local_crops_number",
        count,
    )
    result = train(tmp_path, *words)
    assert result.code == 0, result.text


@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_the_other_optimizers_train(images: Path, tmp_path: Path, optimizer: str) -> None:
    words = (
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "run",
        "--epochs",
        1,
        "--optimizer",
        optimizer,
    )
    result = train(
        tmp_path, *words, "--accumulate_steps", 2, "--use_bn_in_head", "true", "--precision", "bf16"
    )
    assert result.code == 0, result.text


@pytest.mark.long
@pytest.mark.parametrize("run", [train, train_pair])
def test_a_compiled_run_trains_and_saves_plain_names(
    images: Path, tmp_path: Path, run: Callable[..., Result | list[Result]]
) -> None:
    words = ("--data_path", images, "--epochs", 1, "--drop_path_rate", 0)
    for name, more in (("plain", ()), ("compiled", ("--compile",))):
        ended = run(tmp_path, *words, "--output_dir", tmp_path / name, *more)
        for result in ended if isinstance(ended, list) else [ended]:
            assert result.code == 0, result.text
    plain, other = (state_of(tmp_path / name)["student"] for name in ("plain", "compiled"))
    assert plain.keys() == other.keys()
    name = "module.backbone.blocks.0.mlp.fc1.weight"
    assert torch.allclose(plain[name], other[name], atol=1e-5)


@pytest.mark.parametrize("arch", ["resnet18", "xcit_nano_12_p8"])
def test_other_backbones_train(images: Path, tmp_path: Path, arch: str) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 1, "--arch", arch)
    sizes = ("--global_crops_size", 32, "--local_crops_size", 32, "--data_limit", 8)
    result = train(tmp_path, *words, *sizes)
    assert result.code == 0, result.text


def refusals() -> list[tuple[list[str], list[str]]]:
    """(words, what the line must hold)."""
    return [
        (["--arch", "vit_smal"], ["vit_smal", "vit_small"]),
        (["--epochs", "3", "--warmup_epochs", "5"], ["--warmup_epochs 5", "--epochs 3"]),
        (["--batch_size_per_device", "41"], ["40 images", "41"]),
        (["--output_dir", "/proc/nowhere"], ["/proc/nowhere", "another folder"]),
        (["--global_crops_scale", "0.9", "0.4"], ["--global_crops_scale"]),
        (["--lr", "-1"], ["--lr must be >= 0 (got -1.0)"]),
        (["--lr", "nan"], ["--lr must be >= 0 (got nan)"]),
        (["--seed", "-1"], ["--seed must be >= 0 (got -1)"]),
        (
            ["--local_crops_size", "4"],
            ["--local_crops_size must be at least --patch_size 8 (got 4)"],
        ),
        (["--precision", "bf16", "--hmp"], ["--precision bf16", "--hmp"]),
        (["--device", "ipu"], ["ipu"]),
        (["--arch", "vit_b_16"], ["vit_b_16", "16-pixel"]),
        (["--eval_knn_every", "1"], ["--eval_knn_every"]),
        (["--learning_rate", "1"], ["--learning_rate"]),
    ]


@pytest.mark.parametrize(("words", "wanted"), refusals(), ids=lambda value: " ".join(value)[:40])
def test_wrong_input_ends_with_2_and_one_line(
    images: Path, tmp_path: Path, words: list[str], wanted: list[str]
) -> None:
    result = train(tmp_path, "--data_path", images, "--output_dir", tmp_path / "run", *words)
    assert_refused(result, wanted)


def test_without_data_path_the_line_names_the_demo(tmp_path: Path) -> None:
    assert_refused(train(tmp_path, "--output_dir", tmp_path / "run"), ["--data_path demo"])


@pytest.mark.parametrize("kind", ["empty", "missing"])
def test_an_empty_or_missing_folder_is_named(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "empty":
        folder.mkdir()
    assert_refused(
        train(tmp_path, "--data_path", folder, "--output_dir", tmp_path / "run"), [str(folder)]
    )


def assert_refused(result: Result, wanted: list[str]) -> None:
    assert result.code == 2, result.text
    lines = [line for line in result.text.splitlines() if "Error: " in line]
    assert len(lines) == 1 and "Traceback" not in result.text, result.text
    assert all(part in lines[0] for part in wanted), lines[0]


def linger_at_log_lines() -> None:
    """This process is slow to ask the others, the last time when they have nothing left to do."""
    from dino.runtime.distributed import StopAgreement

    check = StopAgreement.check

    def slow(self: StopAgreement, wanted: bool) -> bool:
        time.sleep(3)
        return check(self, wanted)

    StopAgreement.check = slow


def test_a_process_that_is_done_waits_for_a_slow_one(images: Path, tmp_path: Path) -> None:
    """Rank 0 holds the store that the others still read."""
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--epochs", 1)
    words = (*words, "--batch_size_per_device", 2)
    results = train_pair(tmp_path, *words, prepare=(None, linger_at_log_lines))
    assert [result.code for result in results] == [0, 0], results
