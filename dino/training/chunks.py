"""What the loss holds at a time: rows of logits, and rows of temporary tensors of all prototypes.

Shapes: K prototypes, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Least rows of logits at a time: fewer read the prototypes too often.
CHUNK_ROWS = 128
CACHE_PARTS = 8  # a temporary tensor as large as a cache is read from memory again


class Chunks(NamedTuple):
    """What the loss holds at a time.

    Attributes:
        rows: Rows of logits (n, K).
        prototypes: Rows of a temporary tensor (n, D) of all prototypes.
    """

    rows: int
    prototypes: int


def choose_chunks(weight_v: Tensor, temporary_bytes: int) -> Chunks:
    """Return what to hold at a time.

    Args:
        weight_v: (K, D), the last layer's.
        temporary_bytes: Size of one temporary tensor that the device prefers; 0 if unknown. About
            four of the size of the logits in float32 exist at a time.
    """
    prototypes, width = weight_v.shape
    rows = max(CHUNK_ROWS, temporary_bytes // (4 * prototypes))
    if not 0 < temporary_bytes < 4 * prototypes * width:
        return Chunks(rows, prototypes)
    return Chunks(rows, max(1, temporary_bytes // CACHE_PARTS // (4 * width)))


def split(rows: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """(N, ...) each -> `rows` rows of all of them at a time; no views if that is all."""
    if len(tensors[0]) <= rows:
        return [tensors]
    return list(zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True))


def join(parts: list[Tensor]) -> Tensor:
    """(n, ...) each -> all rows (N, ...); a single part is not copied."""
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def scale_rows(weight: Tensor, scale: Tensor, dtype: torch.dtype, rows: int) -> Tensor:
    """(K, D) times (K, 1) float32, in another type."""
    if weight.dtype == dtype:
        return weight * scale
    scaled = torch.empty_like(weight, dtype=dtype)
    for part, some, factor in split(rows, scaled, weight, scale):
        part.copy_(some * factor)
    return scaled


def multiply(left: Tensor, right: Tensor, rows: int) -> Tensor:
    """(K, n) times (n, D) in their type, as float32."""
    if left.dtype == torch.float32:
        return left @ right
    product = left.new_empty(len(left), right.shape[1], dtype=torch.float32)
    for part, some in split(rows, product, left):
        part.copy_(some @ right)
    return product


def add_product(total: Tensor, left: Tensor, right: Tensor, rows: int) -> None:
    """Total += left right; needs no memory for the product if the types match."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
        return
    for part, some in split(rows, total, left):
        part.add_(some @ right)
