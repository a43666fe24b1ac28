"""Gradient clipping without a host read (clip_gradients in the original's utils.py)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, *, fused: bool = False
) -> tuple[Tensor, Tensor]:
    """Clip each gradient tensor by its own norm, in place, as clip_gradients in the original does.

    Args:
        parameters: Parameters to clip; those without a gradient are ignored.
        max_norm: Largest norm of one tensor; 0 leaves the gradients as they are.
        fused: Whether the device computes the norms of a list of tensors at once.

    Returns:
        () norm of all gradients together before clipping, and () 1.0 if it is finite, else 0.0.
    """
    with torch.no_grad():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        take_norms = torch._foreach_norm if fused else _take_norms
        norms = torch.stack(take_norms(gradients))
        total = torch.linalg.vector_norm(norms)
        if max_norm > 0:
            factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, list(factors.unbind()))
        return total, torch.isfinite(total).float()


def _take_norms(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.linalg.vector_norm(tensor) for tensor in tensors]
