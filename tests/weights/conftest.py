"""What the converters' tests share: lively weights, a command run as a shell would, features of
both sides."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dino.cli.session import exit_code
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.registry import build_backbone
from dino.weights.load import load_backbone


@pytest.fixture
def lively() -> Callable[..., nn.Module]:
    """``lively(arch, **settings)``: a network whose every parameter matters."""

    def build(arch: str = "vit_mini", **settings: Any) -> nn.Module:
        torch.manual_seed(11)
        module = build_backbone(arch, **{"img_size": 64, **settings}).eval()
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2 if parameter.numel() < 1e5 else 0.05)
        return module

    return build


@pytest.fixture
def weights(tmp_path: Path, lively: Callable[..., nn.Module]) -> Path:
    """A checkpoint of ours with a head beside the backbone, and with a normalization of its own."""
    teacher = {f"backbone.{name}": tensor for name, tensor in lively().state_dict().items()}
    args = {"arch": "vit_mini", "patch_size": 16, "in_chans": 3, "global_crops_size": 64}
    normalization = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    head = {"head.mlp.0.weight": torch.zeros(2, 2)}
    path = tmp_path / "weights.pth"
    torch.save({"teacher": {**teacher, **head}, "args": args, "normalisation": normalization}, path)
    return path


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``command(main, *words)`` runs a command: its exit code, and what it printed."""

    def run(main: Callable[[Sequence[str]], None], *words: object) -> tuple[int, str]:
        capsys.readouterr()
        code = exit_code(lambda: main([*map(str, words)]))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def reload() -> Callable[..., nn.Module]:
    """``reload(path, **settings)``: the backbone as evaluations load it."""

    def load(path: Path, **settings: Any) -> nn.Module:
        weights = WeightsConfig(pretrained_weights=str(path))
        return load_backbone(BackboneConfig(**settings), weights).module

    return load


def equal_tensors(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules have the same tensors to the bit."""
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(
        torch.equal(left[name], right[name]) for name in left
    )
