"""Gradient clipping without a host read (clip_gradients in the original's utils.py)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dino.constants import keep_constant

ROW = 4096  # numbers in a row of the buffer that accelerators copy all gradients to


def clip_gradients(
    parameters: Iterable[nn.Parameter],
    max_norm: float,
    *,
    fused: bool = False,
    in_rows: bool = False,
) -> tuple[Tensor, Tensor]:
    """Clip each gradient tensor by its own norm, as clip_gradients in the original does.

    If any gradient is not finite, all of them become 0, so that a masked update never multiplies 0
    by NaN.

    Args:
        parameters: Parameters to clip; those without a gradient are ignored.
        max_norm: Largest norm of one tensor; 0 leaves finite gradients as they are.
        fused: Whether the device computes the norms of a list of tensors at once.
        in_rows: Copy all gradients to one buffer first and replace them with views of it. That
            takes a dozen operators for any number of tensors and reads nothing on the host.

    Returns:
        () norm of all gradients together before clipping, and () 1.0 if it is finite, else 0.0.
    """
    with torch.no_grad():
        owners = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in owners if parameter.grad is not None]
        if not in_rows:
            return _clip_list(gradients, max_norm, fused=fused)
        clipped, total = _clip_rows(gradients, max_norm)
        for parameter, gradient in zip(owners, clipped, strict=True):
            parameter.grad = gradient
        return total, torch.isfinite(total).float()


def _clip_list(gradients: list[Tensor], max_norm: float, *, fused: bool) -> tuple[Tensor, Tensor]:
    norms = torch.stack(
        torch._foreach_norm(gradients)
        if fused
        else [torch.linalg.vector_norm(gradient) for gradient in gradients]
    )
    total = torch.linalg.vector_norm(norms)
    finite = torch.isfinite(total)
    if not finite:
        torch._foreach_zero_(gradients)
    elif max_norm > 0:
        torch._foreach_mul_(gradients, list(_find_factors(norms, max_norm).unbind()))
    return total, finite.float()


def _clip_rows(gradients: list[Tensor], max_norm: float) -> tuple[list[Tensor], Tensor]:
    """Return the clipped gradients, views of one new buffer, and the norm of all before.

    Each gradient begins a row; the rest of its last row is 0. The norms are sums over rows.
    """
    device = gradients[0].device
    counts = tuple(-(-gradient.numel() // ROW) for gradient in gradients)
    owners, places, padding = (
        keep_constant(make, device, counts) for make in (_make_owners, _make_places, _make_padding)
    )
    pieces = [(part.reshape(-1), padding[: -part.numel() % ROW]) for part in gradients]
    rows = torch.cat([part for pair in pieces for part in pair]).reshape(-1, ROW)
    norms = (owners @ torch.linalg.vector_norm(rows, dim=1).square()).sqrt()
    total = torch.linalg.vector_norm(norms)
    if max_norm > 0:
        rows.mul_(_find_factors(norms, max_norm).index_select(0, places)[:, None])
    rows.masked_fill_(~torch.isfinite(total), 0.0)
    parts = torch.split(rows, list(counts))
    return [
        part.reshape(-1)[: old.numel()].reshape(old.shape)
        for part, old in zip(parts, gradients, strict=True)
    ], total


def _find_factors(norms: Tensor, max_norm: float) -> Tensor:
    return (max_norm / (norms + 1e-6)).clamp(max=1.0)


def _make_places(counts: tuple[int, ...]) -> Tensor:
    """(rows,) int32: the tensor of each row."""
    owners = [place for place, count in enumerate(counts) for _ in range(count)]
    return torch.tensor(owners, dtype=torch.int32, device="cpu")


def _make_owners(counts: tuple[int, ...]) -> Tensor:
    """(tensors, rows) float32: 1 where a row belongs to a tensor."""
    tensors = torch.arange(len(counts), device="cpu")
    return (tensors[:, None] == _make_places(counts)).float()


def _make_padding(_counts: tuple[int, ...]) -> Tensor:
    return torch.zeros(ROW, device="cpu")
