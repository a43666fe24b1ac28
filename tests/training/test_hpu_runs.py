"""Whole runs on simulated cards: the CPU's numbers, in every mode; checkpoints that travel; two
cards as one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino import checkpoint
from dino.data.packing import Packing, pack_images
from dino.data.sources import open_training_source
from tests import hpu_simulator
from tests.running import (
    TINY,
    Job,
    lines_of,
    losses_of,
    make_images,
    make_labelled,
    on_simulated_card,
    state_of,
    train,
    train_pair,
)
from tests.training.test_trainer import assert_equal

ROOT = Path(__file__).resolve().parents[2]
MODES = (
    ("--lazy_mode", "false"),
    ("--lazy_mode", "true"),
    ("--compile",),
    ("--recompute", "activations"),
    ("--recompute", "mlp"),
    ("--recompute", "blocks", "--lazy_mode", "true"),
)
EXACT = (
    "--drop_path_rate",
    0,
)  # stochastic depth is drawn for each process, so that two would not be one
DEPTH = ("--drop_path_rate", 0.3, "--batch_size_per_device", 2, "--accumulate_steps", 2)

pytestmark = pytest.mark.skipif(
    hpu_simulator.why_unavailable() is not None,
    reason=f"no simulated hpu: {hpu_simulator.why_unavailable()}",
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty noise images in a flat folder."""
    return make_images(tmp_path_factory.mktemp("images"), 40)


@pytest.fixture(scope="module")
def on_cpu(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run on the CPU."""
    folder = tmp_path_factory.mktemp("cpu")
    assert train(folder, "--data_path", images, "--output_dir", folder / "run", *EXACT).code == 0
    return folder / "run"


@pytest.fixture(scope="module")
def with_depth(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with stochastic depth, in two micro-batches."""
    folder = tmp_path_factory.mktemp("cpu")
    assert train(folder, "--data_path", images, "--output_dir", folder / "run", *DEPTH).code == 0
    return folder / "run"


@pytest.mark.parametrize("mode", MODES, ids=" ".join)
def test_every_mode_trains_to_the_cpus_numbers(
    images: Path, with_depth: Path, tmp_path: Path, mode: tuple[str]
) -> None:
    words = (
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "run",
        *DEPTH,
        "--device",
        "hpu",
        *mode,
    )
    result = train(tmp_path, *words, prepare=on_simulated_card)
    assert result.code == 0, result.text
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(with_depth), rel=1e-5)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert {"hpu/graph_compilations", "hpu/cpu_fallbacks"} <= set(events.Tags()["scalars"])
    assert {event.value for event in events.Scalars("hpu/cpu_fallbacks")} == {0}


@pytest.mark.parametrize("card", [(), ("--device", "hpu")], ids=["cpu", "hpu"])
def test_views_made_by_the_loaders_train_to_the_same_numbers(
    images: Path, on_cpu: Path, tmp_path: Path, card: tuple[str, ...]
) -> None:
    words = (
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "run",
        *EXACT,
        "--augment_on",
        "host",
        *card,
    )
    result = train(tmp_path, *words, prepare=on_simulated_card if card else None)
    assert result.code == 0, result.text
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(on_cpu), rel=1e-5)


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images in tar shards."""
    folder = tmp_path_factory.mktemp("shards")
    list(pack_images(open_training_source(str(images)), folder, Packing(16), workers=1))
    return folder


@pytest.mark.parametrize("card", [(), ("--device", "hpu")], ids=["cpu", "hpu"])
def test_shards_train_to_the_folders_numbers(
    shards: Path, on_cpu: Path, tmp_path: Path, card: tuple[str, ...]
) -> None:
    words = ("--data_path", shards, "--output_dir", tmp_path / "run", *EXACT, *card)
    result = train(tmp_path, *words, prepare=on_simulated_card if card else None)
    assert result.code == 0, result.text
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(on_cpu), rel=1e-5)


def test_a_run_killed_in_an_epoch_of_a_folder_continues_on_its_shards(
    images: Path, shards: Path, on_cpu: Path, tmp_path: Path
) -> None:
    words = ("--output_dir", tmp_path / "run", *EXACT, "--save_every_steps", 3)
    job = Job(tmp_path, [*TINY, *map(str, ("--data_path", images, *words))], None)
    while "5/20" not in job.text() and job.process.is_alive():
        pass
    job.kill()
    job.wait()
    assert train(tmp_path, "--data_path", shards, *words).code == 0
    assert_equal(state_of(tmp_path / "run"), state_of(on_cpu))


def test_an_interrupted_run_continues_to_the_bit(images: Path, tmp_path: Path) -> None:
    words = [
        "--data_path",
        str(images),
        "--device",
        "hpu",
        "--hmp",
        "--drop_path_rate",
        "0.2",
        "--epochs",
        "3",
    ]
    words += ["--lazy_mode", "false"]
    whole = train(tmp_path, *words, "--output_dir", tmp_path / "whole", prepare=on_simulated_card)
    assert whole.code == 0, whole.text
    stopped = ["--output_dir", str(tmp_path / "stopped"), "--save_every_steps", "7"]
    job = Job(tmp_path, [*TINY, *words, *stopped], on_simulated_card)
    while "10/30" not in job.text() and job.process.is_alive():
        pass
    job.kill()
    job.wait()
    assert train(tmp_path, *words, *stopped, prepare=on_simulated_card).code == 0
    assert_equal(state_of(tmp_path / "whole"), state_of(tmp_path / "stopped"))
    assert lines_of(tmp_path / "whole") == lines_of(tmp_path / "stopped")


def test_a_checkpoint_goes_from_card_to_cpu_and_back(images: Path, tmp_path: Path) -> None:
    """An epoch on a card with --hmp, one on the CPU, one on a card: the losses of the CPU alone
    within bf16."""
    for name, devices in {"there": ("hpu", "cpu", "hpu"), "here": ("cpu", "cpu", "cpu")}.items():
        for epochs, device in enumerate(devices, start=1):
            words = (
                "--data_path",
                images,
                "--output_dir",
                tmp_path / name,
                "--epochs",
                epochs,
                "--device",
                device,
            )
            card = device == "hpu"
            result = train(
                tmp_path,
                *words,
                *EXACT,
                *("--hmp",) * card,
                prepare=on_simulated_card if card else None,
            )
            assert result.code == 0, result.text
    assert losses_of(tmp_path / "there") == pytest.approx(losses_of(tmp_path / "here"), rel=1e-2)
    assert {tensor.device.type for tensor in state_of(tmp_path / "there")["student"].values()} == {
        "cpu"
    }


@pytest.mark.parametrize(
    "mode", [("--lazy_mode", "true"), ("--lazy_mode", "false"), ("--compile",)], ids=" ".join
)
def test_two_cards_equal_one_with_twice_the_batch(
    images: Path, on_cpu: Path, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    words = (
        "--data_path",
        images,
        "--output_dir",
        tmp_path / "run",
        *EXACT,
        "--device",
        "hpu",
        *mode,
    )
    results = train_pair(
        tmp_path,
        *words,
        "--batch_size_per_device",
        2,
        prepare=(on_simulated_card, on_simulated_card),
    )
    assert [result.code for result in results] == [0, 0], results
    assert losses_of(tmp_path / "run") == pytest.approx(losses_of(on_cpu), abs=1e-4)


def test_batch_norm_spans_two_cards(images: Path, tmp_path: Path) -> None:
    words = (
        "--data_path",
        images,
        "--arch",
        "resnet18",
        "--global_crops_size",
        32,
        "--local_crops_size",
        32,
    )
    more = (
        "--epochs",
        1,
        "--data_limit",
        16,
        "--freeze_last_layer",
        0,
        "--warmup_epochs",
        0,
        "--device",
        "hpu",
    )
    alone = train(
        tmp_path,
        *words,
        *more,
        "--output_dir",
        tmp_path / "one",
        "--batch_size_per_device",
        8,
        prepare=on_simulated_card,
    )
    pair = train_pair(
        tmp_path,
        *words,
        *more,
        "--output_dir",
        tmp_path / "two",
        prepare=(on_simulated_card, on_simulated_card),
    )
    assert [alone.code, *(result.code for result in pair)] == [0, 0, 0], [
        alone.text,
        *(r.text for r in pair),
    ]
    assert losses_of(tmp_path / "two") == pytest.approx(losses_of(tmp_path / "one"), abs=1e-4)


def run_script(*words: object, **variables: str) -> subprocess.CompletedProcess:
    """A command as a user of a container starts it: the bridge is installed, nothing else is
    prepared."""
    environment = (
        os.environ | {"PYTHONPATH": str(hpu_simulator.PACKAGE), "OMP_NUM_THREADS": "1"} | variables
    )
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.long
def test_the_references_commands_train_and_score_on_a_card(tmp_path: Path) -> None:
    """As the Gaudi reference writes them, but for the sizes; the device is found by itself."""
    data = make_labelled(tmp_path / "data", {"train": 12, "val": 6})
    sizes = "--patch_size 8 --global_crops_size 16 --local_crops_size 8 --local_crops_number 1 --out_dim 16 --epochs 1"
    words = [
        "--arch",
        "vit_mini",
        "--data_path",
        data / "train",
        "--output_dir",
        tmp_path / "run",
        "--hmp",
    ]
    launched = run_script(
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "main_dino.py"),
        *(*words, *sizes.split(), "--batch_size_per_device", 4, "--num_workers", 1),
        # the reference's mode; upstream's torch, which is here, would compile
        PT_HPU_LAZY_MODE="1",
    )
    assert launched.returncode == 0, launched.stderr
    assert (
        "device: hpu, ops, lazy mode, op lists ops_bf16.txt, ops_fp32.txt (chosen automatically"
        in launched.stdout
    )
    weights = tmp_path / "run" / checkpoint.LATEST
    words = [
        "--data_path",
        data,
        "--pretrained_weights",
        weights,
        "--nb_knn",
        5,
        "--batch_size_per_device",
        4,
    ]
    card, host = (
        run_script("eval_knn.py", *words, "--device", device) for device in ("hpu", "cpu")
    )
    assert card.returncode == host.returncode == 0, card.stderr
    results = [
        [line for line in ended.stdout.splitlines() if "classifier" in line]
        for ended in (card, host)
    ]
    assert results[0] == results[1] and len(results[0]) == 1


def test_a_card_that_cannot_be_acquired_is_one_line(images: Path, tmp_path: Path) -> None:
    words = ("--data_path", images, "--output_dir", tmp_path / "run", "--device", "hpu")
    result = train(tmp_path, *words, prepare=hold_the_card)
    assert result.code == 2 and "Traceback" not in result.text, result.text
    assert "DeviceError: the card cannot be acquired: another process holds it" in result.text


def hold_the_card() -> None:
    """The first tensor on the card fails as it does where another process has it."""
    on_simulated_card()

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("synStatus=26 [Generic failure] Device acquire failed.")

    torch.nn.Module.to = refuse
