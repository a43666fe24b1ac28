"""The command that says what a weights file is."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from dino import inspect
from dino.cli.session import exit_code
from dino.models.registry import build_backbone


@pytest.fixture
def path(tmp_path: Path) -> Path:
    teacher = {
        f"backbone.{name}": t
        for name, t in build_backbone("vit_mini", img_size=64).state_dict().items()
    }
    teacher |= {"head.last_layer.weight_v": torch.zeros(12, 8)}
    args = {"arch": "vit_mini", "patch_size": 16, "lr": 0.0005}
    state = {
        "teacher": teacher,
        "epoch": 4,
        "args": args,
        "dino_loss": {"center": torch.zeros(1, 12)},
        "resume": {"scores": {"level": 0, "start": {"own_view": 9.5}, "best": {}, "rose": False}},
    }
    torch.save(state, tmp_path / "file.pth")
    return tmp_path / "file.pth"


def test_it_says_what_the_file_is_in_a_few_lines(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect.main([str(path), "--json", "-"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        f"{path}: backbone of this project",
        "teacher: vit_mini, patch size 16, 3 channels, images of 64 x 64, 42 tensors (0.30 M), float32, "
        "12 prototypes, also head (1)",
        "centre: 12",
        "epoch: 4",
        "scores: {'start': {'own_view': 9.5}}",
        "flags: --arch vit_mini --patch_size 16 --lr 0.0005",
    ]
    found = json.loads(lines[-1])
    assert (found["file"], found["epoch"], found["networks"]["teacher"]["prototypes"]) == (
        str(path),
        4,
        12,
    )


class Call:
    """Pickles as a call that leaves a trace."""

    def __reduce__(self) -> Any:
        return eval, ("open('RAN', 'w')",)


@pytest.mark.parametrize("name", ["file.pth", "file.pdparams"])
def test_nothing_in_a_file_is_executed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    if name.endswith(".pth"):
        torch.save({"a": Call()}, name)
    else:
        Path(name).write_bytes(pickle.dumps({"a": Call()}))
    assert exit_code(lambda: inspect.main([name])) == 2
    text = capsys.readouterr().err
    assert len(text.splitlines()) == 1 and "eval" in text and not Path("RAN").exists()


def test_a_report_that_cannot_be_written_is_refused_before_the_file_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(tmp_path / "gone.pth"), "--json", str(tmp_path / "nowhere" / "a.json")]
    assert exit_code(lambda: inspect.main(words)) == 2
    assert "--json" in capsys.readouterr().err


def test_without_a_file_it_says_how(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(lambda: inspect.main([])) == 2
    assert "python -m dino.inspect FILE" in capsys.readouterr().err
