"""Weights that tell images apart, and the backbone that they are loaded into."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import dino
from dino.models.registry import build_backbone
from tests.api.tiny import write_pictures, write_splits

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small network whose features differ from image to image."""
    torch.manual_seed(0)
    module = build_backbone("vit_mini", patch_size=8, img_size=32)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    args = {"arch": "vit_mini", "patch_size": 8, "global_crops_size": 32}
    state = {
        "teacher": module.state_dict(),
        "args": args,
        "normalisation": {"mean": MEAN, "std": STD},
    }
    torch.save(state, path)
    return path


@pytest.fixture
def backbone(weights: Path) -> nn.Module:
    """The same, loaded."""
    return dino.load(weights)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A flat folder of what `tiny.Pictures` holds."""
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="session")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train and val, of two classes."""
    return write_splits(tmp_path_factory.mktemp("splits"))
