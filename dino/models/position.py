"""The original's interpolation of position embeddings, written as two matrix products.

Bicubic interpolation is linear in the embedding. Compilers expand the operator to about a hundred
of their own and accumulate gradients by index; they leave two matrix products as they are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from types import MappingProxyType

import torch
import torch.nn.functional as F
from torch import Tensor

NOTHING: Mapping[int, Tensor] = MappingProxyType({})


def scale_position(
    embedding: Tensor,
    height: int,
    width: int,
    patch_size: int,
    kept: Mapping[int, Tensor] = NOTHING,
) -> Tensor:
    """Position embedding (1, N, D) for a `height` x `width` image, bicubic from a square one.

    Computed in float32 or better regardless of autocast; returned in the dtype of `embedding`.

    Args:
        embedding: (1, 1 + side * side, D).
        height: Image height in pixels.
        width: Image width in pixels.
        patch_size: Side of a patch in pixels.
        kept: Results of `compute_weights` by `count`; missing ones are computed.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    rows, columns = height // patch_size, width // patch_size
    if rows * columns == side * side and height == width:
        return embedding
    dtype = torch.promote_types(embedding.dtype, torch.float32)

    def weigh(count: int) -> Tensor:
        if count in kept:
            return kept[count].to(dtype)
        return compute_weights(count, side, dtype, embedding.device)

    # Devices without autocast (torch's meta) do not allow disabling it.
    exact = (
        contextlib.nullcontext()
        if embedding.is_meta
        else torch.autocast(embedding.device.type, enabled=False)
    )
    with exact:
        grid = weigh(rows) @ embedding[0, 1:].to(dtype).reshape(side, -1)  # (rows, side D)
        grid = weigh(columns) @ grid.reshape(rows, side, -1)  # (rows, columns, D)
    return torch.cat(
        [embedding[:, :1], grid.to(embedding.dtype).reshape(1, rows * columns, -1)], dim=1
    )


def compute_weights(
    count: int, side: int, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """Weights of `side` stored patches for each of `count` in a line: (count, side), rows sum to 1.

    The original requests 0.1 patch more than needed (interpolate_pos_encoding, its issue 8), so
    that rounding never loses a row. The resulting scale is part of every published number.
    """
    # Channels, patches, 1.
    lines = torch.eye(side, dtype=dtype, device=device).reshape(1, side, side, 1)
    scaled = F.interpolate(lines, scale_factor=((count + 0.1) / side, 1.0), mode="bicubic")
    return scaled.reshape(side, count).T.contiguous()
