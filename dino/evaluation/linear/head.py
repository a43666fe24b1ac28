"""A linear classifier on frozen features: the layer, the optimizer, one step and the score.

The formulas are those of the original's eval_linear.py. Shapes: B images, D width of a feature, C
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.devices.base import Engine
from dino.errors import CheckpointError
from dino.evaluation.features import Features
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.exchange import GradientExchange
from dino.stored_optimizer import copy_moments

INIT_STD = 0.01  # of the weights, as in the original's LinearClassifier
MOMENTUM = 0.9
TOP = 5  # classes of the second accuracy, which needs at least as many


class LinearHead(nn.Module):
    """One linear layer, under the original's parameter names."""

    def __init__(self, width: int, classes: int) -> None:
        """Initialize it for D = `width` and C = `classes`: N(0, 0.01) weights, zero bias."""
        super().__init__()
        self.linear = nn.Linear(width, classes)
        nn.init.normal_(self.linear.weight, std=INIT_STD)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> logits (B, C)."""
        logits: Tensor = self.linear(features)
        return logits


class MomentumSGD(torch.optim.Optimizer):
    """SGD with momentum 0.9, equal to torch.optim.SGD and with the same state layout.

    The learning rate is a tensor, because on lazy and compiled devices a changed Python number
    causes a new graph.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        """Create zero momentum for every parameter, so that shapes never change later."""
        fixed = {"momentum": MOMENTUM, "dampening": 0, "weight_decay": 0, "nesterov": False}
        super().__init__(parameters, {"lr": 0.0, **fixed})
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the momentum of a file, of ours or of torch.optim.SGD.

        Raises:
            CheckpointError: It is missing or does not fit.
        """
        names = ("momentum_buffer",)
        for parameter, held in copy_moments(state_dict, self, names, "the checkpoint").items():
            if not held:
                raise CheckpointError("the checkpoint's optimizer lacks a momentum_buffer")
            self.state[parameter] = held

    def step(self, rate: Tensor) -> None:  # type: ignore[override]  # torch's step takes a closure
        """Update every parameter in place from its `.grad`; `rate` is () float32 on the device."""
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                buffer = self.state[parameter]["momentum_buffer"]
                buffer.mul_(MOMENTUM).add_(parameter.grad)
                parameter.sub_(rate * buffer)


class Samples(NamedTuple):
    """The batch of one step: images (B, C, S, S) or features (B, D), and labels (B,) int64."""

    inputs: Tensor
    labels: Tensor


class LinearInputs(NamedTuple):
    """The value that changes from step to step: the () float32 learning rate."""

    learning_rate: Tensor


class LinearProgram:
    """The classifier's training step.

    Attributes:
        loss: () float32, sum of this process's losses since the last reset to 0.
    """

    def __init__(
        self, head: LinearHead, extract: Callable[[Tensor], Tensor], processes: Processes
    ) -> None:
        """Bind the head.

        Args:
            head: The layer, on its device.
            extract: Function from the inputs of the samples to features (B, D), without gradients.
            processes: Processes over which gradients are averaged.
        """
        self.head, self.extract = head, extract
        exchanged = head.parameters() if processes.world_size > 1 else ()
        self.exchange = GradientExchange(exchanged, processes.all_reduce_mean_async)
        self.loss = torch.zeros((), device=head.linear.weight.device)

    def step(self, engine: Engine, batch: Samples, inputs: LinearInputs) -> None:
        """Train once on a batch."""
        # Tensors from inference mode cannot be used in training, so they are cloned.
        features = self.extract(batch.inputs).clone()
        loss = F.cross_entropy(self.head(features), batch.labels)
        self.exchange.begin()
        engine.backward(loss)
        self.exchange.finish()
        engine.update(inputs.learning_rate)
        self.loss += loss.detach()


class LinearScore(NamedTuple):
    """Mean cross-entropy, and accuracies in %; `top5` is None for fewer than five classes."""

    loss: float
    top1: float
    top5: float | None

    def named(self) -> dict[str, float]:
        """Return the values that are not None, by the original's names."""
        values = {"loss": self.loss, "acc1": self.top1, "acc5": self.top5}
        return {name: value for name, value in values.items() if value is not None}

    def describe(self) -> str:
        """Return the original's log line."""
        second = "" if self.top5 is None else f" Acc@5 {self.top5:.3f}"
        return f"Acc@1 {self.top1:.3f}{second} loss {self.loss:.3f}"


def score_head(
    infer: Callable[[Tensor], Tensor], test: Features, *, classes: int, batch_size: int, run: Run
) -> LinearScore:
    """Score a head on every image exactly once. Each process scores its share.

    Args:
        infer: Function from (B, D) on the device to logits (B, C).
        test: Features and labels of all images, in host memory.
        classes: C.
        batch_size: B.
        run: Device and processes.
    """
    share = slice(run.processes.rank, None, run.processes.world_size)
    sums = [0.0, 0.0, 0.0]
    feature_batches = torch.split(test.features[share], batch_size)
    label_batches = torch.split(test.labels[share], batch_size)
    for rows, labels in zip(feature_batches, label_batches, strict=True):
        # The number of rows is fixed: another one needs another graph on devices that compile.
        padded = F.pad(rows, (0, 0, 0, batch_size - len(rows)))
        logits = infer(run.device.to_device(padded)).cpu()[: len(rows)]
        hits = logits.topk(min(TOP, classes)).indices == labels[:, None]
        values = (F.cross_entropy(logits, labels, reduction="sum"), hits[:, 0].sum(), hits.sum())
        sums = [total + float(value) for total, value in zip(sums, values, strict=True)]
    totals = run.processes.all_reduce_sum(
        run.device.to_device(torch.tensor(sums, dtype=torch.float32))
    ).tolist()
    loss, top1, top5 = (total / len(test.labels) for total in totals)
    return LinearScore(loss=loss, top1=100.0 * top1, top5=100.0 * top5 if classes >= TOP else None)
