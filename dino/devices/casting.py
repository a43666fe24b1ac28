"""The weights of a block, cast to the number format of autocast in one operator.

Autocast casts each weight and each bias by itself, and the backward pass each of their gradients:
for ViT-S/16 that is a fifth of a step's launches. The numbers are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Only these layers: autocast keeps the weights of normalizations in fp32, and a subclass may use
# its weights in another way.
CAST = (nn.Linear, nn.Conv2d)


def cast_together(stages: Iterable[nn.Module]) -> None:
    """Make each stage cast its weights in one operator whenever it is called under autocast.

    A stage has one node in the backward pass, so the gradients of the stages are ready one after
    the other, as data parallelism needs it.

    Args:
        stages: Modules that run by their `forward`, none within another. Each runs once in a pass:
            autocast would cast the weights once for all calls, and add gradients in its format.
    """
    for stage in stages:
        joint = _JointCast(stage)
        if joint.places:
            stage.register_forward_pre_hook(joint.put)
            stage.register_forward_hook(joint.put_back, always_call=True)


class _JointCast:
    """Hooks around a stage's forward pass."""

    def __init__(self, stage: nn.Module) -> None:
        self.places = [
            (layer, name)
            for layer in stage.modules()
            if type(layer) in CAST
            for name, own in layer._parameters.items()
            if own is not None
        ]
        self.own = list[nn.Parameter | None]()

    def put(self, _stage: nn.Module, _inputs: Any) -> None:
        """Replace the weights by their casts."""
        own = [layer._parameters[name] for layer, name in self.places]
        weights = [weight for weight in own if weight is not None]
        kind = weights[0].device.type
        if torch.is_autocast_enabled(kind):
            self.own = own
            casts = _Cast.apply(torch.get_autocast_dtype(kind), *weights)
            self._set(casts)

    def put_back(self, _stage: nn.Module, _inputs: Any, _output: Any) -> None:
        """Restore the weights."""
        if self.own:
            self._set(self.own)
            self.own = []

    def _set(self, weights: Iterable[Any]) -> None:
        for (layer, name), weight in zip(self.places, weights, strict=True):
            layer._parameters[name] = weight


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = weights[0].dtype
        return tuple(_copy(list(weights), dtype))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        found = iter(_copy([part for part in gradients if part is not None], ctx.dtype))
        return (None, *(None if part is None else next(found) for part in gradients))


def _copy(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, tensors)
    return copies
