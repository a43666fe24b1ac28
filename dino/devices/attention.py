"""Attention written out, for devices whose fused kernel is missing or not verified.

Shapes: B images, h heads, N tokens, d width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, key, value, each (B, h, N, d)


def attend_explicitly(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: (B, h, n, d), (B, h, N, d), (B, h, N, d) -> (B, h, n, d).

    Torch's own formula guards against rows without any key, which takes five more operators, and
    computes bfloat16 in float32. The N x N weights are stored for the backward pass.
    """
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    mixed: Tensor = scores.softmax(dim=-1) @ value
    return mixed
