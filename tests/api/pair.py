"""What one of two processes calls in tests/api/test_processes.py: `main` runs in each of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch

import dino
from tests.api.tiny import RUN, Pictures


def main(words: Sequence[str]) -> None:
    """Embed, train, continue and embed again; leave what came of it in the folder."""
    weights, folder = words
    backbone = dino.load(weights)
    first = dino.embed(backbone, Pictures(5), device="cpu", num_workers=0).vectors
    for epochs in (1, 2):
        result = dino.pretrain(
            Pictures(), f"{folder}/run", **{**RUN, "batch_size_per_device": 2, "epochs": epochs}
        )
    again = dino.embed(backbone, Pictures(5), device="cpu", num_workers=0).vectors
    names = [name for name, _ in result.teacher.named_parameters()]
    torch.save([first, again, len(result.history), names], f"{folder}/{os.environ['RANK']}.pth")
