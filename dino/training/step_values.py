"""What goes into a step of DINO, what comes out of it, and what is counted over steps.

Shapes: B images of one micro-batch on one device, V views, K prototypes, L blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Names of the sums kept on the device; "steps" counts the steps that were not masked.
METERS = ("steps", "loss", "entropy", "divergence", "feature_std", "centre_norm", "grad_norm")
# Name in a checkpoint -> attribute.
STORED = {"centre": "center", "non_finite": "non_finite", "meters": "meters"}
NON_FINITE_LIMIT = 5  # masked steps in a row that end the run


class StepInputs(NamedTuple):
    """Inputs that change from step to step, float32 on the host until the step begins.

    All are () except `depth`.

    Attributes:
        learning_rate: Learning rate of this iteration, already scaled with the global batch.
        weight_decay: Weight decay of this iteration.
        momentum: Momentum of the teacher's moving average.
        temperature: The teacher's temperature.
        train_last_layer: 0 while the last layer is frozen, else 1.
        depth: Stochastic depth (micro-batches, 2 L, V B), or None without it (`training/draws`).
    """

    learning_rate: Tensor
    weight_decay: Tensor
    momentum: Tensor
    temperature: Tensor
    train_last_layer: Tensor
    depth: Tensor | None = None

    @classmethod
    def on_host(cls, numbers: Sequence[float], depth: Tensor | None = None) -> StepInputs:
        """Build the inputs from Python numbers, in field order."""
        return cls(*torch.tensor(numbers, dtype=torch.float32, device="cpu").unbind())._replace(
            depth=depth
        )


class StepOutput(NamedTuple):
    """Output of a forward pass; every field may be averaged over micro-batches and processes.

    Attributes:
        loss: () float32.
        batch_center: (1, K) float32, mean teacher logits.
        entropy: () teacher entropy in nats.
        divergence: () teacher divergence in nats.
        feature_std: () spread of the teacher's features, 0 to about 1.
    """

    loss: Tensor
    batch_center: Tensor
    entropy: Tensor
    divergence: Tensor
    feature_std: Tensor


def list_statistics(network: nn.Module) -> list[Tensor]:
    """Return the batch norm statistics: all persistent buffers, which forward passes update."""
    return [
        buffer
        for part in network.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and name not in part._non_persistent_buffers_set
    ]


def count_non_finite(counters: Tensor, finite: Tensor) -> Tensor:
    """Return the next (2,) counters: masked steps in total and in a row; `finite` is () 1 or 0."""
    total, row = counters.unbind()
    masked = 1.0 - finite
    next_row = torch.where(row >= NON_FINITE_LIMIT, row, (row + 1.0) * masked)
    return torch.stack([total + masked, next_row])
