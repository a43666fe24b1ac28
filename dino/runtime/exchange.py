"""Averages gradients over processes while the backward pass still runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from dino.devices.untyped import call_with_gradient

Average = Callable[[Tensor], Callable[[], Tensor]]


class GradientExchange:
    """Gradients in flat buckets: one copy, one collective and one division for each.

    Unlike torch's DistributedDataParallel, it launches nothing per parameter, and it works alike
    around eager and compiled networks.

    Attributes:
        buckets: Parameters by the order in which their gradients are complete: the network's last
            ones first.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter] = (),
        average: Average = lambda tensor: lambda: tensor,
        bucket_bytes: int = 25 * 2**20,
    ) -> None:
        """Listen to the gradients.

        Args:
            parameters: Those of a network in their order; frozen ones are left out. None for one
                process, which has nothing to exchange.
            average: Starts averaging a tensor over processes; returns a function that waits.
            bucket_bytes: Size at which a bucket is full; as in DistributedDataParallel by default.
        """
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self.average, self.buckets = average, fill_buckets(trained[::-1], bucket_bytes)
        self.missing, self.started = [0] * len(self.buckets), list[Callable[[], Tensor]]()
        self.listens = False
        for place, bucket in enumerate(self.buckets):
            for parameter in bucket:
                call_with_gradient(parameter, functools.partial(self._arrive, place))

    def begin(self) -> None:
        """Begin with the next backward pass, the last of this step."""
        self.missing, self.started = [len(bucket) for bucket in self.buckets], []
        self.listens = True

    def finish(self) -> None:
        """Wait; every `grad` is then a view of its bucket's mean. Missing gradients count as 0."""
        self.listens = False
        self._start(len(self.buckets))
        for bucket, wait in zip(self.buckets, self.started, strict=True):
            parts = torch.split(wait(), [parameter.numel() for parameter in bucket])
            for parameter, part in zip(bucket, parts, strict=True):
                parameter.grad = part.view_as(parameter)

    def _arrive(self, place: int, _parameter: Tensor) -> None:
        """Start the buckets that are complete, always in the same order on all processes."""
        if not self.listens:
            return
        self.missing[place] -= 1
        complete = len(self.started)
        while complete < len(self.buckets) and not self.missing[complete]:
            complete += 1
        self._start(complete)

    def _start(self, end: int) -> None:
        for bucket in self.buckets[len(self.started) : end]:
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in bucket]
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            self.started.append(self.average(flat))


def fill_buckets(parameters: Iterable[nn.Parameter], bucket_bytes: int) -> list[list[nn.Parameter]]:
    """Split parameters into buckets, in order; a bucket is full once it has `bucket_bytes`."""
    buckets, size = list[list[nn.Parameter]](), bucket_bytes
    for parameter in parameters:
        if size >= bucket_bytes:
            buckets.append([])
            size = 0
        buckets[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return buckets
