"""Features on every device at hand; in a file of its own, since a card stays a module's default
device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

import dino
from tests.api.tiny import Pictures


def test_embed_gives_the_same_features_on_every_device_and_the_backbone_back(
    device: torch.device, weights: Path, relative_error: Callable[[object, object], float]
) -> None:
    with torch.device("cpu"):
        backbone = dino.load(weights)
        expected = dino.embed(backbone, Pictures(), device="cpu", num_workers=0).vectors
        found = dino.embed(backbone, Pictures(), device=device.type, num_workers=0).vectors
        assert found.device.type == "cpu" and relative_error(found, expected) < 1e-4
        assert {parameter.device.type for parameter in backbone.parameters()} == {"cpu"}
