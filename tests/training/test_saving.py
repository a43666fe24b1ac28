"""Checkpoints written beside training: what waits for them, and what becomes of their errors."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dino import checkpoint
from dino.errors import CheckpointError, DataError
from dino.training.saving import Saver


def make_state(number: int) -> dict[str, Any]:
    return {
        "student": {"module.backbone.x": torch.full((3,), float(number))},
        "teacher": {"backbone.x": torch.full((3,), float(number)), "head.y": torch.zeros(2)},
        "normalisation": {"mean": [0.5] * 3, "std": [0.5] * 3},
        "epoch": number,
        "args": {"arch": "vit_tiny", "output_dir": "somewhere"},
    }


def begin(saver: Saver, number: int, **more: Any) -> list[int]:
    """Begin to save; return a list that holds the number once it is written."""
    written: list[int] = []
    settings = {"numbered": None, "best": False, **more}
    saver.begin(make_state(number), written=lambda: written.append(number), **settings)
    return written


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """No checkpoint is written before this is set."""
    event, save = threading.Event(), checkpoint.save_latest

    def save_later(folder: Path, state: dict[str, Any]) -> None:
        assert event.wait(60)
        save(folder, state)

    monkeypatch.setattr(checkpoint, "save_latest", save_later)
    yield event
    event.set()


def refuse(folder: Path, state: dict[str, Any]) -> None:
    raise CheckpointError("x.pth cannot be written")


def test_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, gate: threading.Event
) -> None:
    with Saver(tmp_path, keep=0) as saver:
        written = begin(saver, 1, numbered=7, best=True)
        saver.check()
        assert not written and not list(tmp_path.iterdir())
        gate.set()
        saver.wait()
        assert written == [1]
    names = ["checkpoint.pth", "checkpoint0007.pth", "checkpoint_best.pth", "teacher_backbone.pth"]
    names.append("teacher_backbone.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names[:3]:
        assert checkpoint.load_file(tmp_path / name)["epoch"] == 1
    assert set(checkpoint.load_file(tmp_path / names[3])["teacher"]) == {"backbone.x"}
    assert set(load_file(tmp_path / names[4])) == {"x"}


def test_leaving_waits_for_the_last_checkpoint(tmp_path: Path, gate: threading.Event) -> None:
    with Saver(tmp_path, keep=0) as saver:
        written = begin(saver, 1)
        threading.Timer(0.2, gate.set).start()
    assert written == [1] and checkpoint.load_file(tmp_path / checkpoint.LATEST)["epoch"] == 1


@pytest.mark.parametrize("notice", [Saver.check, Saver.wait], ids=["log line", "next save"])
def test_a_failed_write_is_an_error_of_the_run_and_the_one_before_it_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, notice: Any
) -> None:
    with Saver(tmp_path, keep=0) as saver:
        begin(saver, 1)
        saver.wait()
        monkeypatch.setattr(checkpoint, "save_latest", refuse)
        written = begin(saver, 2)
        saver._thread.submit(int).result()  # the thread has done what came before
        with pytest.raises(CheckpointError, match="x.pth cannot be written"):
            notice(saver)
        assert not written
        saver.check()  # it is said once
    assert checkpoint.load_file(tmp_path / checkpoint.LATEST)["epoch"] == 1


def test_the_end_of_a_run_raises_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save_latest", refuse)
    with pytest.raises(CheckpointError, match="x.pth"), Saver(tmp_path, keep=0) as saver:
        begin(saver, 1)


def test_a_failed_write_does_not_hide_why_the_run_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "save_latest", refuse)
    with pytest.raises(DataError, match="an image"), Saver(tmp_path, keep=0) as saver:
        begin(saver, 1)
        raise DataError("an image")
    assert "x.pth cannot be written" in caplog.text
