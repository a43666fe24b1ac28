"""A program of torch.export gives the network's features at any batch size."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from dino.cli.convert import convert_to
from dino.errors import OptionError, WeightsError
from dino.weights.formats import export

Command = Callable[..., tuple[int, str]]
to_program = partial(convert_to, "export")


def test_features_are_the_networks_at_any_batch_size(
    weights: Path, tmp_path: Path, command: Command, lively: Any
) -> None:
    path = tmp_path / "model.pt2"
    code, text = command(to_program, weights, path, "--input_size", 96, 64, "--json", "-")
    assert code == 0, text
    lines = text.splitlines()
    assert "images must be normalized: levels from 0 to 1, mean (0.4, 0.5, 0.6)" in text
    assert f"{path}: 42 of 42 tensors matched, for images [3, 96, 64]" in lines
    assert f"torch.export.load({str(path)!r}).module() maps images (B, C, H, W) to" in lines[-1]
    about = json.loads(next(line for line in lines if line.startswith("{")))
    assert about["images"] == [3, 96, 64] and about["difference"] < 1e-5
    program, module = torch.export.load(path).module(), lively()
    for batch in (1, 5):
        images = torch.randn(batch, 3, 96, 64)
        with torch.inference_mode():
            assert torch.allclose(program(images), module(images), atol=1e-5)
    torch.nn.init.constant_(module.norm.bias, 3.0)
    with pytest.raises(WeightsError, match=r"of model\.pt2 must equal the network's within 1e-04"):
        export.compare(module, images, path)


def test_a_network_with_batch_norm_goes_to_disk_and_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten()
    module, images = torch.nn.Sequential(*layers).eval(), torch.randn(3, 1, 8, 8)
    export.write_program(module, images, tmp_path / "model.pt2")
    assert export.compare(module, images, tmp_path / "model.pt2") < 1e-6


def test_what_torch_cannot_export_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no translation\nof an operator")

    monkeypatch.setattr(torch.export, "export", refuse)
    with pytest.raises(OptionError) as refused:
        export.write_program(torch.nn.Identity(), torch.zeros(3, 3, 8, 8), tmp_path / "model.pt2")
    assert str(refused.value) == (
        f"torch {torch.__version__} cannot export this network: no translation; "
        "try a newer torch, or another `arch`"
    )
    assert not list(tmp_path.iterdir())


def test_an_old_torch_is_refused_before_the_weights_are_read(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda _: None)
    code, text = command(to_program, tmp_path / "gone.pth", tmp_path / "model.pt2")
    assert code == 2 and f"torch.export needs torch 2.5 or later (got {torch.__version__})" in text
