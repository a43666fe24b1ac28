"""Attention as training computes it, and the device's fused kernel, against the formula in float64.

Shapes: B images, h heads, N tokens, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from dino import golden
from dino.devices.attention import Attend
from dino.verify.golden_numbers import Found, Numbers

SHAPES = ((2, 3, 37, 64), (2, 3, 197, 64))  # a local and a global crop of ViT-Ti


def check_attention(numbers: Numbers) -> Found:
    """Check output and gradients of each attention that `attention` can choose here."""
    for name, attend in _list_kinds(numbers):
        for shape in SHAPES:
            yield from _check(numbers, f"{name} attention, {shape[2]} tokens", attend, shape)


def _list_kinds(numbers: Numbers) -> Iterator[tuple[str, Attend]]:
    yield "default", numbers.run.device.attention or F.scaled_dot_product_attention
    fused = numbers.run.device.find_fused_attention()
    if fused is not None:
        yield "fused", fused


def _check(numbers: Numbers, name: str, attend: Attend, shape: tuple[int, ...]) -> Found:
    drawn = [golden.draw(80 + part, *shape) for part in range(4)]
    *inputs, upstream = (numbers.to_device(part) for part in drawn)
    leaves = [part.requires_grad_() for part in inputs]
    with numbers.run.device.autocast():
        mixed = attend(*leaves)
    gradients = torch.autograd.grad(mixed.float(), leaves, upstream)
    expected = _attend(*(part.astype("f8") for part in drawn))
    yield numbers.compare(name, mixed, expected[0])
    for letter, gradient, reference in zip("qkv", gradients, expected[1:], strict=True):
        yield numbers.compare(f"{name}, gradient of {letter}", gradient, reference)


def _attend(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, upstream: np.ndarray
) -> tuple[np.ndarray, ...]:
    """softmax(q k^T / sqrt(d)) v, and the gradients of q, k and v for an upstream gradient."""
    scale = query.shape[-1] ** -0.5
    scores = scale * query @ key.swapaxes(-1, -2)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    to_weights = upstream @ value.swapaxes(-1, -2)
    inner = (to_weights * weights).sum(axis=-1, keepdims=True)
    to_scores = scale * weights * (to_weights - inner)
    return (
        weights @ value,
        to_scores @ key,
        to_scores.swapaxes(-1, -2) @ query,
        weights.swapaxes(-1, -2) @ upstream,
    )
