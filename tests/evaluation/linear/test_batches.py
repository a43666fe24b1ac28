"""Features that are kept come in the batches in which their images would come."""

from __future__ import annotations

import torch

from dino.data.datasets import Share
from dino.data.epoch_batches import EpochBatches
from dino.evaluation.features import Features
from dino.evaluation.linear.batches import CachedBatches

COUNT = 11


def plan_batches() -> EpochBatches:
    return EpochBatches(COUNT, 2, seed=3, share=Share(rank=1, world_size=2))


def test_kept_features_come_in_the_order_of_the_loader() -> None:
    data, plan = Features(features=torch.rand(COUNT, 3), labels=torch.arange(COUNT)), plan_batches()
    batches = CachedBatches(data, plan_batches())
    plan.begin(4)
    expected = [[index for _, index in batch] for batch in plan]
    found = list(batches.read(4))
    assert len(batches) == len(found) == 2
    for (rows, labels), indices in zip(found, expected, strict=True):
        assert torch.equal(rows, data.features[indices]) and torch.equal(
            labels, data.labels[indices]
        )
