"""What is stored beside the tensors comes back; a file without it stays anybody's."""

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from dino.errors import CheckpointError
from dino.weights.safetensors_file import read_safetensors, save_safetensors

TENSORS = {"norm.weight": torch.arange(6.0).reshape(2, 3).T, "norm.bias": torch.zeros(2).half()}
ABOUT = {"args": {"arch": "vit_mini", "pixel_range": [0.5, 900.0], "clip_grad": None}, "epoch": 3}


def test_tensors_come_back_with_what_is_known_about_them(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_safetensors(path, TENSORS, ABOUT)
    state = read_safetensors(path)
    assert all(torch.equal(state["teacher"][name], TENSORS[name]) for name in TENSORS)
    assert {name: value for name, value in state.items() if name != "teacher"} == ABOUT
    assert safetensors.torch.load_file(path).keys() == TENSORS.keys()


def test_a_file_of_another_project_has_tensors_alone(tmp_path: Path) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w.safetensors", {"format": "pt"})
    assert list(read_safetensors(tmp_path / "w.safetensors")) == ["state_dict"]


def test_nothing_else_of_the_metadata_becomes_a_part_of_the_state(tmp_path: Path) -> None:
    about = json.dumps({"student": 1, "resume": {}, "epoch": 3})
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w", {"dino": about})
    assert read_safetensors(tmp_path / "w").keys() == {"teacher", "epoch"}


@pytest.mark.parametrize("text", ["{", "[]", "[" * 10**5])
def test_damaged_metadata_is_named(tmp_path: Path, text: str) -> None:
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "w", {"dino": text})
    with pytest.raises(CheckpointError, match="'dino' in its metadata must be a dictionary"):
        read_safetensors(tmp_path / "w")


def test_a_write_that_fails_leaves_the_file_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"before")

    def fail(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"w\.safetensors cannot be written \(the disk is"):
        save_safetensors(path, TENSORS, ABOUT)
    assert path.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1
