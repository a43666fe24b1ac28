"""eval_linear.py from its flags to its files: the original's numbers, lines and checkpoint, alone
and in company."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

import eval_linear
from dino import checkpoint
from dino.config import RECIPE
from dino.data.crops import build_rng, center_crop, random_resized_crop
from dino.data.decode import read_image
from dino.data.photometric import build_normalization
from dino.data.sources import open_labelled_splits
from dino.errors import (
    CheckpointError,
    DataError,
    DinoError,
    NonFiniteError,
    OptionError,
    WeightsError,
)
from dino.evaluation.linear.head import LinearHead
from dino.evaluation.linear.task import BEST, CHECKPOINT
from dino.evaluation.linear.trainer import LinearTrainer
from dino.models.registry import VITS, VitShape, build_backbone
from dino.models.vit import VisionTransformer
from dino.runtime.distributed import Processes
from dino.runtime.folder_lock import hold_folder
from dino.runtime.metrics import MetricLog
from tests import hpu_simulator
from tests.running import on_simulated_card, run_alone, run_pair

COLORS = ("black", "blue", "gray", "green", "red", "white")
TRAIN, TEST, SIZE, BATCH = 8, 3, 16, 8  # images of a class, side of a view, images of a batch
SINKS = ("--log_to", "tensorboard", "jsonl")
ACCURACY = re.compile(
    r"^Accuracy at epoch (\d+) of the network on the 18 test images: ([\d.]+)%$", re.MULTILINE
)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six colors with noise, as class folders."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for split, count in (("train", TRAIN), ("val", TEST)):
        for name in COLORS:
            (root / split / name).mkdir(parents=True)
            plain = np.array(Image.new("RGB", (22, 20), name), dtype=np.int64)
            for number in range(count):
                noisy = (plain + rng.randint(-60, 60, plain.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(root / split / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a tiny untrained network."""
    torch.manual_seed(0)
    args = {"arch": "vit_mini", "patch_size": 8, "global_crops_size": SIZE}
    path = tmp_path_factory.mktemp("weights") / "backbone.pth"
    torch.save(
        {
            "teacher": build_backbone("vit_mini", patch_size=8, img_size=SIZE).state_dict(),
            "args": args,
        },
        path,
    )
    return path


@pytest.fixture
def words(images: Path, weights: Path) -> list[str]:
    """What every run of these tests says."""
    files = ["--data_path", str(images), "--pretrained_weights", str(weights), "--num_workers", "0"]
    return [
        *files,
        "--n_last_blocks",
        "2",
        "--batch_size_per_device",
        str(BATCH),
        "--lr",
        "3",
        "--epochs",
        "3",
    ]


def run(*words: object) -> None:
    eval_linear.main([*map(str, words), "--device", "cpu"])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.txt").read_text().splitlines()]


def head_of(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load_file(folder / CHECKPOINT)["state_dict"]


def describe(model: VisionTransformer, pixels: list[torch.Tensor]) -> torch.Tensor:
    """CLS tokens of the last two blocks, (B, 192)."""
    with torch.no_grad():
        layers = model.get_intermediate_layers(build_normalization(3)(torch.stack(pixels)), 2)
    return torch.cat([tokens[:, 0] for tokens in layers], dim=1)


def train_plainly(
    images: Path, weights: Path, epochs: int, stop: int | None = None
) -> dict[str, Any]:
    """The original's loop with torch's own optimizer and schedule; gives its checkpoint after
    `stop` epochs."""
    train, test = open_labelled_splits(str(images))
    model = build_backbone("vit_mini", patch_size=8, img_size=SIZE).eval()
    model.load_state_dict(torch.load(weights)["teacher"])
    torch.manual_seed(0)
    head, best = LinearHead(192, 6), 0.0
    optimizer = torch.optim.SGD(head.parameters(), lr=3 * BATCH / 256, momentum=0.9, weight_decay=0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs, eta_min=0)
    views = [center_crop(read_image(test.path(index)), SIZE) for index in range(len(test))]
    rows, truth = describe(model, views), torch.tensor(test.labels)
    log = []
    for epoch in range(epochs if stop is None else stop):
        key = np.random.SeedSequence((0, epoch), spawn_key=(0,))
        order, losses = np.random.default_rng(key).permutation(len(train)).tolist(), []
        for start in range(0, len(train) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            crops = [
                random_resized_crop(read_image(train.path(i)), build_rng(0, epoch, i), SIZE)
                for i in batch
            ]
            labels = torch.tensor([train.labels[i] for i in batch])
            loss = nn.CrossEntropyLoss()(head(describe(model, crops)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        line = {
            "train_lr": optimizer.param_groups[0]["lr"],
            "train_loss": sum(losses) / len(losses),
            "epoch": epoch,
        }
        scheduler.step()
        with torch.no_grad():
            logits = head(rows)
        ranks = (logits.argsort(dim=1, descending=True) == truth[:, None]).float()
        line |= {
            "test_loss": float(F.cross_entropy(logits, truth)),
            "test_acc1": float(ranks[:, 0].mean()) * 100,
        }
        best = max(best, line["test_acc1"])
        log.append(line | {"test_acc5": float(ranks[:, :5].sum(dim=1).mean()) * 100})
    state = {
        "epoch": len(log),
        "state_dict": {f"module.{name}": value for name, value in head.state_dict().items()},
    }
    more = {
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "best_acc": best,
    }
    return {**state, **more, "log": log}


def assert_same_head(folder: Path, expected: dict[str, Any], **bounds: float) -> None:
    for name, value in expected["state_dict"].items():
        torch.testing.assert_close(
            head_of(folder)[name], value, **(bounds or {"rtol": 1e-4, "atol": 1e-5})
        )


def test_a_run_is_the_originals_loop(
    words: list[str], images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(*words, "--output_dir", tmp_path, "--json", tmp_path / "found.json", *SINKS)
    expected, lines = train_plainly(images, weights, 3), lines_of(tmp_path)
    assert_same_head(tmp_path, expected)
    assert [set(line) for line in lines] == [set(line) for line in expected["log"]]
    for line, wanted in zip(lines, expected["log"], strict=True):
        assert line == pytest.approx(wanted, rel=1e-4)
    printed, best = capsys.readouterr().out, max(line["test_acc1"] for line in lines)
    assert "Data loaded with 48 train and 18 val imgs." in printed
    assert [(int(epoch), float(value)) for epoch, value in ACCURACY.findall(printed)] == [
        (epoch, round(line["test_acc1"], 1)) for epoch, line in enumerate(lines)
    ]
    assert (
        f"Max accuracy so far: {best:.2f}%" in printed
        and f"Top-1 test accuracy: {best:.1f}" in printed
    )
    assert best > 60  # colors are easy
    told = json.loads((tmp_path / "found.json").read_text())
    assert (told["train"], told["test"], told["classes"], told["best_top1"]) == (48, 18, 6, best)
    assert told["top1"] == lines[-1]["test_acc1"]
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("test_acc1")] == [1, 2, 3]
    assert [event.value for event in events.Scalars("train_loss")] == pytest.approx(
        [x["train_loss"] for x in lines]
    )
    rows = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert [(row["iteration"], row["train_loss"]) for row in rows] == [
        (line["epoch"] + 1, line["train_loss"]) for line in lines
    ]


def test_the_sinks_learn_whether_a_run_reached_its_end(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []
    monkeypatch.setattr(MetricLog, "close", lambda log, *, completed: told.append(completed))
    run(*words, "--output_dir", tmp_path / "one")
    monkeypatch.setattr(LinearTrainer, "_train_epoch", lambda trainer, epoch: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(*words, "--output_dir", tmp_path / "two")
    assert told == [True, False]


def test_the_checkpoint_is_read_by_the_originals_code(words: list[str], tmp_path: Path) -> None:
    run(*words, "--output_dir", tmp_path)
    state = torch.load(tmp_path / CHECKPOINT, weights_only=True)
    assert {"epoch", "state_dict", "optimizer", "scheduler", "best_acc"} <= state.keys()
    assert state["epoch"] == 3 and isinstance(state["best_acc"], float)
    head = LinearHead(192, 6)
    nn.ModuleDict({"module": head}).load_state_dict(state["state_dict"])
    optimizer = torch.optim.SGD(head.parameters(), lr=1.0, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3, eta_min=0)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    assert scheduler.last_epoch == 3 and scheduler.base_lrs == [3 * BATCH / 256]


def test_an_originals_checkpoint_is_continued(
    words: list[str], images: Path, weights: Path, tmp_path: Path
) -> None:
    began = train_plainly(images, weights, 3, stop=2)
    began.pop("log")
    torch.save({**began, "best_acc": 100.25}, tmp_path / CHECKPOINT)
    run(*words, "--output_dir", tmp_path)
    assert_same_head(tmp_path, train_plainly(images, weights, 3))
    assert [line["epoch"] for line in lines_of(tmp_path)] == [2]
    assert checkpoint.load_file(tmp_path / CHECKPOINT)["best_acc"] == 100.25


@pytest.mark.parametrize("more", [(), ("--cache_features",)], ids=["augmented", "kept"])
def test_a_run_that_was_cut_continues_to_the_bit(
    words: list[str], more: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, kept = checkpoint.save_file, []

    def save_and_keep(path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        kept.append(path.read_bytes())

    monkeypatch.setattr(checkpoint, "save_file", save_and_keep)
    run(*words, *more, "--output_dir", tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    shutil.copy(tmp_path / "whole" / "log.txt", tmp_path / "cut")
    (tmp_path / "cut" / CHECKPOINT).write_bytes(kept[0])
    run(*words, *more, "--output_dir", tmp_path / "cut")
    assert (tmp_path / "cut" / "log.txt").read_text() == (
        tmp_path / "whole" / "log.txt"
    ).read_text()
    assert_same_head(tmp_path / "cut", {"state_dict": head_of(tmp_path / "whole")}, rtol=0, atol=0)


def test_a_finished_run_only_says_so(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(*words, "--output_dir", tmp_path)
    before, first = (tmp_path / "log.txt").read_text(), capsys.readouterr().out
    run(*words, "--output_dir", tmp_path)
    again = capsys.readouterr().out
    assert "continuing at epoch 3" in again and "Accuracy at epoch" not in again
    assert first.splitlines()[-1] == again.splitlines()[-1]
    assert (tmp_path / "log.txt").read_text() == before


def test_kept_features_train_on_center_crops(
    words: list[str], images: Path, weights: Path, tmp_path: Path
) -> None:
    """With an augmentation that is the center crop, the plain loop gives what kept features
    give."""
    run(*words, "--output_dir", tmp_path, "--cache_features")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            f"{__name__}.random_resized_crop", lambda image, _rng, size: center_crop(image, size)
        )
        assert_same_head(tmp_path, train_plainly(images, weights, 3))


@pytest.mark.parametrize("more", [(), ("--cache_features",)], ids=["augmented", "kept"])
@pytest.mark.parametrize("device", ["cpu", "hpu"])
def test_two_processes_with_half_the_batch_equal_one(
    device: str, more: tuple[str, ...], words: list[str], tmp_path: Path
) -> None:
    """On the CPU with gloo, on simulated cards with hccl; compared with the CPU alone."""
    reason = hpu_simulator.why_unavailable()
    if device == "hpu" and reason:
        pytest.skip(f"no simulated hpu: {reason}")
    run(*words, *more, "--output_dir", tmp_path / "one")
    prepare = on_simulated_card if device == "hpu" else None
    place = (
        "--output_dir",
        tmp_path / "two",
        "--device",
        device,
        "--batch_size_per_gpu",
        BATCH // 2,
    )
    results = run_pair(tmp_path, "eval_linear", *words, *more, *place, prepare=(prepare, prepare))
    assert [result.code for result in results] == [0, 0], results
    for line, wanted in zip(lines_of(tmp_path / "two"), lines_of(tmp_path / "one"), strict=True):
        assert line == pytest.approx(wanted, rel=1e-4)
    assert_same_head(tmp_path / "two", {"state_dict": head_of(tmp_path / "one")})


@pytest.mark.skipif(hpu_simulator.why_unavailable() is not None, reason="no simulated hpu")
@pytest.mark.parametrize("lazy", ["true", "false"])
def test_a_card_gives_the_cpus_numbers(lazy: str, words: list[str], tmp_path: Path) -> None:
    run(*words, "--output_dir", tmp_path / "cpu")
    place = ("--output_dir", tmp_path / "hpu", "--device", "hpu", "--lazy_mode", lazy)
    result = run_alone(tmp_path, "eval_linear", *words, *place, prepare=on_simulated_card)
    assert result.code == 0, result.text
    for line, wanted in zip(lines_of(tmp_path / "hpu"), lines_of(tmp_path / "cpu"), strict=True):
        assert line == pytest.approx(wanted, rel=1e-4)


def test_validation_comes_every_so_many_epochs_and_at_the_end(
    words: list[str], tmp_path: Path
) -> None:
    run(*words, "--output_dir", tmp_path, "--cache_features", "--epochs", 6, "--val_freq", 2)
    assert [("test_acc1" in line) for line in lines_of(tmp_path)] == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]


def test_few_classes_have_no_top_five(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for split in ("train", "val"):
        for name in ("red", "blue"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (20, 20), name).save(
                    tmp_path / "data" / split / name / f"{number}.png"
                )
    files = (
        "--data_path",
        tmp_path / "data",
        "--pretrained_weights",
        weights,
        "--output_dir",
        tmp_path,
    )
    run(
        *files,
        "--n_last_blocks",
        1,
        "--epochs",
        2,
        "--batch_size_per_device",
        8,
        "--num_workers",
        0,
        "--lr",
        3,
    )
    assert lines_of(tmp_path)[-1].keys() == {
        "train_lr",
        "train_loss",
        "test_loss",
        "test_acc1",
        "epoch",
    }
    assert "Acc@5" not in capsys.readouterr().out
    assert lines_of(tmp_path)[-1]["test_acc1"] == 100.0


def test_a_data_limit_keeps_the_share_of_every_class(
    words: list[str], tmp_path: Path, caplog: Any
) -> None:
    with caplog.at_level(logging.INFO):
        run(
            *words,
            "--output_dir",
            tmp_path,
            "--data_limit",
            12,
            "--epochs",
            1,
            "--json",
            tmp_path / "found",
        )
    assert json.loads((tmp_path / "found").read_text())["train"] == 12


def test_a_network_without_blocks_gives_plain_features(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    files = (
        "--data_path",
        images,
        "--random_weights",
        "--output_dir",
        tmp_path,
        "--num_workers",
        0,
    )
    torch.manual_seed(0)
    run(
        *files,
        "--arch",
        "shufflenet_v2_x0_5",
        "--epochs",
        1,
        "--n_last_blocks",
        1,
        "--cache_features",
        "--batch_size_per_gpu",
        9,
    )
    assert head_of(tmp_path)["module.linear.weight"].shape == (6, 1024)
    assert "--n_last_blocks has no meaning for shufflenet_v2_x0_5" in capsys.readouterr().out


def test_a_network_of_few_blocks_gives_all_by_default_and_continues_with_their_number(
    images: Path, tmp_path: Path
) -> None:
    files = ("--data_path", images, "--random_weights", "--output_dir", tmp_path)
    words = (*files, "--arch", "vit_micro", "--num_workers", 0, "--batch_size_per_device", 9)
    run(*words, "--epochs", 1)
    assert head_of(tmp_path)["module.linear.weight"].shape == (6, 3 * 128)
    run(*words, "--epochs", 2, "--n_last_blocks", 3)  # the same task


def test_a_layer_is_scored_from_its_run_and_from_a_file(
    words: list[str], images: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run(*words, "--output_dir", tmp_path / "run", "--cache_features")
    last = lines_of(tmp_path / "run")[-1]["test_acc1"]
    (tmp_path / "only").mkdir()
    shutil.copytree(images / "val", tmp_path / "only" / "val")  # no train images are needed
    state = {"state_dict": head_of(tmp_path / "run")}
    torch.save(state, tmp_path / "layer.pth")
    for place in (
        ("--output_dir", tmp_path / "run"),
        ("--pretrained_linear", tmp_path / "layer.pth"),
    ):
        capsys.readouterr()
        run(
            *words,
            "--evaluate",
            *place,
            "--data_path",
            tmp_path / "only",
            "--json",
            tmp_path / "found",
        )
        assert (
            f"Accuracy of the network on the 18 test images: {last:.1f}%" in capsys.readouterr().out
        )
        assert json.loads((tmp_path / "found").read_text())["top1"] == pytest.approx(last)


def test_the_published_layer_is_read_from_the_mirror(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(VITS, "vit_small", VitShape(embed_dim=24, depth=4, heads=2))
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.save(build_backbone("vit_small").state_dict(), tmp_path / "dino_deitsmall16_pretrain.pth")
    layer = {f"module.{name}": value for name, value in LinearHead(96, 6).state_dict().items()}
    torch.save({"state_dict": layer}, tmp_path / "dino_deitsmall16_linearweights.pth")
    run("--evaluate", "--data_path", images, "--num_workers", 0)
    printed = capsys.readouterr().out
    assert "dino_deitsmall16_pretrain/dino_deitsmall16_linearweights.pth" in printed
    assert "Accuracy of the network on the 18 test images" in printed
    (tmp_path / "dino_deitsmall16_linearweights.pth").write_bytes(b"half a file")
    with pytest.raises(
        CheckpointError, match=r"linearweights\.pth is damaged .*; remove it, and the published"
    ):
        run("--evaluate", "--data_path", images, "--num_workers", 0)


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (
            ("--num_labels", "1000"),
            r"`num_labels` must be 6, the class folders of .*val \(got 1000\); leave it out",
        ),
        (("--num_labels", "5"), r"`num_labels` must be 6, the class folders of .* \(got 5\)"),
        (("--n_last_blocks", "4"), r"`n_last_blocks` must be at most 3 for vit_mini \(got 4\)"),
        (
            ("--batch_size_per_device", "64"),
            "48 images, less than one global batch of 64; lower `batch_size",
        ),
        (
            ("--pretrained_linear", "x.pth"),
            "`pretrained_linear` needs `evaluate`, which scores this layer",
        ),
        (("--data_path", "nowhere"), "`data_path` nowhere does not exist"),
        (("--val_freq", "0"), "--val_freq must be >= "),
    ],
)
def test_what_cannot_be_meant_is_one_line(
    words: list[str], more: tuple[str, ...], named: str, tmp_path: Path
) -> None:
    with pytest.raises((OptionError, DataError), match=named) as caught:
        run(*words, "--output_dir", tmp_path, *more)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_is_nowhere_is_never_random(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match="no weights are published for vit_mini.*`pretrained_linear`"
    ):
        run(*words, "--evaluate", "--output_dir", tmp_path)
    with pytest.raises(DinoError, match=r"gone\.pth does not exist"):
        run(*words, "--evaluate", "--pretrained_linear", tmp_path / "gone.pth")


def test_a_layer_of_other_features_is_refused(words: list[str], tmp_path: Path) -> None:
    run(*words, "--output_dir", tmp_path, "--cache_features", "--epochs", 1)
    wrong = r"linear\.weight must be \(6, 96\) for these classes and features \(got \(6, 192\)\)"
    for more in ((), ("--evaluate",)):
        with pytest.raises(WeightsError, match=wrong):
            run(*words, "--output_dir", tmp_path, "--n_last_blocks", 1, *more)


def test_a_layer_of_another_backbone_or_run_is_refused(
    words: list[str], weights: Path, tmp_path: Path
) -> None:
    run(*words, "--output_dir", tmp_path, "--cache_features", "--epochs", 1)
    other = torch.load(weights)
    other["teacher"]["cls_token"] += 1
    torch.save(other, tmp_path / "other.pth")
    for more in ((), ("--evaluate",)):
        with pytest.raises(CheckpointError, match="was trained with another backbone"):
            run(
                *words,
                "--output_dir",
                tmp_path,
                "--pretrained_weights",
                tmp_path / "other.pth",
                *more,
            )
    with pytest.raises(CheckpointError, match="was trained with `cache_features` True, not False"):
        run(*words, "--output_dir", tmp_path)
    with pytest.raises(CheckpointError, match="was trained with other images"):
        run(*words, "--output_dir", tmp_path, "--cache_features", "--data_limit", 20)


def test_a_run_continues_where_a_default_is_written_out(words: list[str], tmp_path: Path) -> None:
    run(*words, "--output_dir", tmp_path, "--epochs", 1)
    run(*words, "--output_dir", tmp_path, "--epochs", 2, "--avgpool_patchtokens", "false")
    assert [line["epoch"] for line in lines_of(tmp_path)] == [0, 1]


def test_a_layer_of_other_classes_is_refused(
    words: list[str], images: Path, tmp_path: Path
) -> None:
    run(*words, "--output_dir", tmp_path, "--cache_features", "--epochs", 1)
    shutil.copytree(images / "val", tmp_path / "data" / "val")
    first = min((tmp_path / "data" / "val").iterdir())
    first.rename(first.with_name("another"))
    with pytest.raises(CheckpointError, match="was trained with other class folders"):
        run(*words, "--output_dir", tmp_path, "--evaluate", "--data_path", tmp_path / "data")


def test_hosts_that_do_not_share_the_folder_are_refused(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(*words, "--output_dir", tmp_path, "--cache_features", "--epochs", 1)
    monkeypatch.setattr(
        Processes, "read_from_first", lambda _, name, here: here if name == "mode" else "0"
    )
    with pytest.raises(CheckpointError, match="holds epoch 1 here and 0 on rank 0's host"):
        run(*words, "--output_dir", tmp_path, "--cache_features", "--epochs", 2)


def test_the_references_line_for_eight_cards_gives_the_cpus_figures(
    words: list[str], launched_lines: Callable[..., list[str]], tmp_path: Path
) -> None:
    more = ("--cache_features", "--epochs", 2, "--lr", 0.002)
    launched = launched_lines("eval_linear.py", *words, *more, "--output_dir", tmp_path / "two")
    run(*words, *more, "--output_dir", tmp_path / "one", "--batch_size_per_device", 16)
    assert launched == []  # result lines of searches; its own are in log.txt
    found, expected = (lines_of(tmp_path / name)[-1] for name in ("two", "one"))
    assert found["test_acc1"] == expected["test_acc1"] and found["test_loss"] == pytest.approx(
        expected["test_loss"], rel=1e-3
    )


def test_a_file_of_a_layer_alone_is_no_checkpoint(words: list[str], tmp_path: Path) -> None:
    layer = {f"module.{name}": value for name, value in LinearHead(192, 6).state_dict().items()}
    torch.save({"state_dict": layer}, tmp_path / CHECKPOINT)
    with pytest.raises(CheckpointError, match="lacks epoch, optimizer, best_acc"):
        run(*words, "--output_dir", tmp_path)


def test_the_folder_of_a_pre_training_run_is_left_alone(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text('{"epoch": 0}\n')
    (tmp_path / checkpoint.LATEST).write_bytes(b"")
    with pytest.raises(OptionError, match="holds a pre-training run"):
        run(*words, "--output_dir", tmp_path)
    assert (tmp_path / "log.txt").read_text() == '{"epoch": 0}\n'


def test_a_probes_folder_is_one_runs_and_holds_no_file_but_its_own(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    with hold_folder(tmp_path, first=True), pytest.raises(OptionError, match="to another run"):
        run(*words, "--output_dir", tmp_path)
    for name in (RECIPE, BEST):
        (tmp_path / name).write_text("mine")
        with pytest.raises(OptionError, match=f"{name} .* would be replaced"):
            run(*words, "--output_dir", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).unlink()
    (tmp_path / "log.txt").write_text("my notes\n")
    run(*words, "--output_dir", tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in (RECIPE, "log.txt")}
    assert before["log.txt"].startswith(b'my notes\n{"train_lr"')
    run(*words, "--output_dir", tmp_path, "--epochs", 2)
    text = "--output_dir has 3 epochs, --epochs 2 asks for fewer: nothing to train"
    assert text in capsys.readouterr().out
    assert before == {name: (tmp_path / name).read_bytes() for name in before}


def test_a_loss_that_is_no_number_ends_the_run_without_saving(
    words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteError, match="the loss of epoch 0 is nan"):
        run(*words, "--output_dir", tmp_path, "--cache_features", "--lr", "1e38")
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_bad_training_image_is_named(words: list[str], images: Path, tmp_path: Path) -> None:
    shutil.copytree(images, tmp_path / "data")
    (tmp_path / "data" / "train" / "red" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"red/3\.png cannot be decoded"):
        run(*words, "--output_dir", tmp_path / "run", "--data_path", tmp_path / "data")


@pytest.mark.parametrize("name", ["photos", "cifar10"])
def test_shared_pictures_are_learned(
    name: str, words: list[str], shared_data: Path, tmp_path: Path
) -> None:
    """Even an untrained network's features of 16 pixels tell some classes apart."""
    more = (
        "--data_limit",
        500,
        "--batch_size_per_device",
        100,
        "--epochs",
        20,
        "--lr",
        0.3,
        "--cache_features",
    )
    run(*words, "--data_path", shared_data / name, "--output_dir", tmp_path, *more)
    assert max(line["test_acc1"] for line in lines_of(tmp_path)) > 15  # guessing gives 10


PASSL_RECIPE = (
    Path(__file__).resolve().parents[3]
    / "dino"
    / "presets"
    / "configs"
    / "linear"
    / "vits16_passl.yaml"
)
# the recipe on tiny images: what the network cannot have is changed, what the probe does is not
PASSL_WORDS = (
    *(
        "--config",
        PASSL_RECIPE,
        "--arch",
        "vit_mini",
        "--patch_size",
        8,
        "-o",
        "Model.backbone.n_last_blocks=2",
    ),
    *(
        "-o",
        "DataLoader.Train.loader.num_workers=0",
        "-o",
        f"DataLoader.Train.sampler.batch_size={BATCH}",
    ),
)


def test_the_probe_of_passl_acts(images: Path, weights: Path, tmp_path: Path) -> None:
    """Absolute rate, cosine by epoch, validation after every second epoch, the best top-1 kept."""
    files = ("--data_path", images, "--pretrained_weights", weights, "--output_dir", tmp_path)
    run(*files, *PASSL_WORDS, "-o", "Optimizer.lr=0.1", "-o", "Global.epochs=5")
    lines = lines_of(tmp_path)
    rates = [0.05 * (1 + np.cos(np.pi * epoch / 5)) for epoch in range(5)]
    assert [line["train_lr"] for line in lines] == pytest.approx(rates)
    assert ["test_acc1" in line for line in lines] == [False, True, False, True, True]
    scores = {line["epoch"]: line["test_acc1"] for line in lines if "test_acc1" in line}
    first_best = max(
        scores, key=lambda epoch: scores[epoch]
    )  # strictly better: the first of equal ones
    best = checkpoint.load_file(tmp_path / BEST)
    assert (best["epoch"], best["best_acc"]) == (first_best + 1, scores[first_best])
    kept = yaml.safe_load((tmp_path / RECIPE).read_text())
    assert (kept["lr"], kept["scale_lr"], kept["seed"], kept["val_first"]) == (0.1, False, 2023, 2)


@pytest.mark.skipif(hpu_simulator.why_unavailable() is not None, reason="no simulated hpu")
def test_the_probe_of_passl_is_the_same_on_two_cards(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    files = (
        "--data_path",
        images,
        "--pretrained_weights",
        weights,
        *PASSL_WORDS,
        "-o",
        "Global.epochs=4",
    )
    run(*files, "--output_dir", tmp_path / "one")
    half = (
        "-o",
        f"DataLoader.Train.sampler.batch_size={BATCH // 2}",
        "--output_dir",
        tmp_path / "two",
    )
    cards = (on_simulated_card, on_simulated_card)
    results = run_pair(tmp_path, "eval_linear", *files, *half, "--device", "hpu", prepare=cards)
    assert [result.code for result in results] == [0, 0], results
    for line, wanted in zip(lines_of(tmp_path / "two"), lines_of(tmp_path / "one"), strict=True):
        assert line == pytest.approx(wanted, rel=1e-4)


def test_the_best_layer_survives_and_is_scored(words: list[str], tmp_path: Path) -> None:
    """Epochs that make it worse leave the best file alone, also across an interruption."""
    more = ("--cache_features", "--output_dir", tmp_path, "--lr", 0.5)
    run(*words, *more, "--epochs", 3)
    best = (tmp_path / BEST).read_bytes()
    run(*words, *more, "--epochs", 6, "--lr", 0)
    assert (tmp_path / BEST).read_bytes() == best
    assert checkpoint.load_file(tmp_path / CHECKPOINT)["epoch"] == 6
    run(*words, "--output_dir", tmp_path, "--evaluate", "--pretrained_linear", tmp_path / BEST)


def test_the_kept_recipe_gives_the_same_run(words: list[str], tmp_path: Path) -> None:
    run(*words, "--cache_features", "--output_dir", tmp_path / "first")
    run("--config", tmp_path / "first" / RECIPE, "--output_dir", tmp_path / "again")
    assert lines_of(tmp_path / "first") == lines_of(tmp_path / "again")
    assert_same_head(
        tmp_path / "again", {"state_dict": head_of(tmp_path / "first")}, rtol=0, atol=0
    )
