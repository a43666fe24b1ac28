"""A position embedding for images of another size, interpolated as the original does: a product with two matrices.

Bicubic interpolation is linear in the embedding. A compiler that meets it as an operator writes some hundred of its own
in its place, and adds up gradients by index; two products it leaves as they are.
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
    """Position embedding (1, N, D) for an image of `height` x `width` pixels, bicubic from that of a square.

    Computed in float32 at least, whatever autocast is on, and given back in the type of `embedding`.

    Args:
        embedding: (1, 1 + side * side, D).
        height: Of the image in pixels.
        width: Of the image in pixels.
        patch_size: Side of a patch in pixels.
        kept: What `compute_weights` gave, by its `count`; made anew where it is not there.
    """
    side = math.isqrt(embedding.shape[1] - 1)
    rows, columns = height // patch_size, width // patch_size
    if rows * columns == side * side and height == width:
        return embedding
    dtype = torch.promote_types(embedding.dtype, torch.float32)

    def weigh(count: int) -> Tensor:
        weights = (
            kept[count] if count in kept else compute_weights(count, side, dtype, embedding.device)
        )
        return weights.to(dtype)

    # Devices without autocast (torch's meta) refuse to have it switched off.
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
    """What each of `count` patches in a line takes of each of `side`: (count, side), rows of sum 1.

    The original asks for 0.1 patch more than it needs (interpolate_pos_encoding, its issue 8) so that rounding never
    loses a row; the scale that follows from it is part of every published number, so it stays.
    """
    lines = torch.eye(side, dtype=dtype, device=device).reshape(
        1, side, side, 1
    )  # channels, patches, 1
    scaled = F.interpolate(lines, scale_factor=((count + 0.1) / side, 1.0), mode="bicubic")
    return scaled.reshape(side, count).T.contiguous()
