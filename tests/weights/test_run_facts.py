"""What a card says of a run is what its checkpoint and its log say, up to the checkpoint's epoch."""

import argparse
import json
import math
import string
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from dino.config import as_dict
from dino.models.config import WeightsConfig
from dino.training.config import TrainConfig
from dino.training.resume import Identity
from dino.weights.network import Network
from dino.weights.run_facts import ROWS, RunFacts, read_facts

IDENTITY = {"iteration": 2352, "iterations": 147, "world": 2, "global_batch": 64, "images": 9469}


def make_state(**changes: Any) -> dict[str, Any]:
    args = as_dict(TrainConfig()) | {"epochs": 30, "precision": "bf16", "data_path": "/home/ada"}
    scores = {"start": {"own_view": 7.8125, "rankme": 10.654}, "latest": {"own_view": 40.039}}
    resume = {"identity": IDENTITY, "scores": scores}
    return {"epoch": 16, "args": args, "resume": resume} | changes


def write_log(folder: Path, **more: Any) -> Path:
    lines = [
        {"train_loss": 9 - epoch / 10, "train_wd": 0.1, "epoch": epoch, "own_view": 30.0 + epoch}
        for epoch in range(20)
    ]
    lines[9]["knn_top1"] = 61.25
    text = "".join(f"{json.dumps(line | more)}\n" for line in lines)
    (folder / "log.txt").write_text(f"a note\n{text}")
    return folder


def read(state: dict[str, Any], word: Path, key: str = "teacher", **changes: Any) -> RunFacts:
    facts: dict[str, Any] = {"in_chans": 3, "patch_size": 16, "image_size": (224, 224)}
    tensors: dict[str, Any] = {"tensors": {}, "linear": {}, "normalization": None}
    rest = {"origin": "", "arch": "vit_small", "pixel_range": None, "left": ""}
    network = Network(**{**facts, **tensors, **rest, **changes})
    weights = WeightsConfig(pretrained_weights=str(word), checkpoint_key=key)
    return read_facts(state, weights, network)


@pytest.mark.parametrize("name", ["", "checkpoint.pth", "teacher_backbone.safetensors"])
def test_settings_and_scores_are_those_of_the_checkpoint(tmp_path: Path, name: str) -> None:
    facts = read(make_state(), write_log(tmp_path) / name)
    assert facts.network == "teacher"
    assert dict(facts.settings) == {
        "images": "9,469",
        "epochs": "16 of 30",
        "updates": "2,352",
        "images per update": "64",
        "processes": "2",
        "global crops": "2 of 224 pixels, 0.4 to 1 of the area",
        "local crops": "8 of 96 pixels, 0.05 to 0.4 of the area",
        "prototypes": "65,536",
        "teacher's temperature": "0.04 after 0 epochs from 0.04",
        "teacher's momentum": "0.996 to 1",
        "optimizer": "adamw",
        "learning rate": "0.0005 for 256 images per update, 10 epochs of warm-up",
        "weight decay": "0.04 to 0.4",
        "stochastic depth": "0.1",
        "number format": "bf16",
        "loss, mean of the last epoch": "7.5000",  # of epoch 15, counted from 0
    }
    assert facts.scores == [
        ("k-NN top-1, %", "", "61.2", "10"),
        ("own views found, %", "7.8", "45.0", "16"),
        ("RankMe", "10.65", "", ""),
    ]


def test_what_a_conversion_changed_is_said(tmp_path: Path) -> None:
    facts = read(make_state(), tmp_path, in_chans=1, image_size=(96, 96))
    assert facts.settings[-1] == ("changed after all this", "channels, image size")


def test_without_a_log_the_checkpoint_speaks_alone(tmp_path: Path) -> None:
    facts = read(make_state(), tmp_path / "checkpoint.pth", "student")
    assert facts.network == "student" and "loss, mean of the last epoch" not in dict(facts.settings)
    assert facts.scores == [("own views found, %", "7.8", "40.0", ""), ("RankMe", "10.65", "", "")]


def test_the_log_of_a_linear_probe_is_not_the_runs(tmp_path: Path) -> None:
    write_log(tmp_path)
    text = (tmp_path / "log.txt").read_text().replace("train_wd", "train_lr")
    (tmp_path / "log.txt").write_text(text)
    assert read(make_state(), tmp_path).scores[0] == ("own views found, %", "7.8", "40.0", "")


def test_every_value_of_a_row_is_a_setting_or_a_count() -> None:
    counts = {"epoch", "train_loss", *(field.name for field in fields(Identity))}
    known = counts | as_dict(TrainConfig()).keys()
    named = {name for _, row in ROWS for _, name, _, _ in string.Formatter().parse(row) if name}
    assert named <= known


def test_the_originals_checkpoint_says_what_it_knows(tmp_path: Path) -> None:
    args = argparse.Namespace(
        out_dim=1024, epochs=100, lr=0.0005, warmup_epochs=10, optimizer="sgd"
    )
    assert dict(read({"epoch": 100, "args": args}, tmp_path).settings) == {
        "epochs": "100 of 100",
        "prototypes": "1,024",
        "optimizer": "sgd",
        "learning rate": "0.0005 for 256 images per update, 10 epochs of warm-up",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "/home/ada/opt", "precision": "ada@lab", "lr": "x", "out_dim": "many"},
        {"optimizer": ["a", "b"], "precision": {"a": 1}, "lr": math.nan, "out_dim": True},
        {"optimizer": "a | b", "precision": "x" * 99, "lr": [1, 2], "out_dim": None},
    ],
)
def test_other_values_than_numbers_and_words_are_left_out(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    state = make_state(resume={"identity": 3, "scores": {"start": [1], "latest": {"rankme": "x"}}})
    state["args"] |= changes
    facts = read(state, write_log(tmp_path, own_view="high", knn_top1=None))
    absent = {"optimizer", "number format", "learning rate", "prototypes", "images"}
    assert not absent & dict(facts.settings).keys() and "ada" not in str(facts)
    assert facts.scores == []


@pytest.mark.parametrize(
    "state", [{}, {"epoch": 3, "args": {"arch": "x"}}, {"args": {"out_dim": 9}}]
)
def test_weights_of_no_run_have_no_facts(tmp_path: Path, state: dict[str, Any]) -> None:
    assert read(state, write_log(tmp_path)) == RunFacts()
