"""Activations that the backward pass computes again instead of keeping them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_again(function: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """Run a function, store only its inputs, and recompute the rest in the backward pass.

    Recomputing stops once the backward pass has what it needs; a final linear layer runs once.
    """
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def run_linear(prepare: Callable[..., Tensor], layer: nn.Linear, *inputs: Tensor) -> Tensor:
    """Return `layer(prepare(*inputs))` and recompute only `prepare`, the input of the layer.

    The same numbers as `run_again`, to the bit, without its hooks and without casting the weight a
    second time. A compiler sees `run_again`, which it knows.

    Args:
        prepare: A module or a function of few operations: (..., D) -> (..., D).
        layer: Has a bias.
        inputs: Of `prepare`; stored.
    """
    if torch.compiler.is_compiling():
        return run_again(lambda *stored: layer(prepare(*stored)), *inputs)
    own = tuple(prepare.parameters()) if isinstance(prepare, nn.Module) else ()
    result: Tensor = _PreparedLinear.apply(
        prepare, layer.weight, layer.bias, len(inputs), *inputs, *own
    )
    return result


class _PreparedLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        prepare: Callable[..., Tensor],
        weight: Tensor,
        bias: Tensor,
        count: int,
        *tensors: Tensor,
    ) -> Tensor:
        """`tensors` are the `count` inputs of `prepare`, then its parameters."""
        kind = weight.device.type
        ctx.prepare, ctx.count = prepare, count
        ctx.autocast = {
            "device_type": kind,
            "enabled": torch.is_autocast_enabled(kind),
            "dtype": torch.get_autocast_dtype(kind),
        }
        prepared = prepare(*tensors[:count])
        # The type that autocast or an op list chooses for the layer.
        dtype = F.linear(prepared[:1], weight[:1]).dtype
        cast = weight.to(dtype)
        ctx.save_for_backward(weight, bias, cast, *tensors)
        # Autocast would keep its cast of the weight, without a gradient, for later calls.
        with torch.autocast(kind, enabled=False):
            return F.linear(prepared.to(dtype), cast, bias.to(dtype))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, cast, *tensors = ctx.saved_tensors
        inputs = [part.detach().requires_grad_(part.requires_grad) for part in tensors[: ctx.count]]
        with torch.enable_grad(), torch.autocast(**ctx.autocast):
            prepared = ctx.prepare(*inputs)
        rows = upstream.flatten(0, -2)
        to_weight = rows.t() @ prepared.detach().to(rows.dtype).flatten(0, -2)
        to_prepared = (rows @ cast).unflatten(0, upstream.shape[:-1]).to(prepared.dtype)
        tensors[: ctx.count] = inputs
        wanted = [part for part in tensors if part.requires_grad]
        found = iter(torch.autograd.grad(prepared, wanted, to_prepared) if wanted else ())
        gradients = (next(found) if part.requires_grad else None for part in tensors)
        return None, to_weight.to(weight.dtype), rows.sum(0).to(bias.dtype), None, *gradients
