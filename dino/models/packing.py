"""Tokens of several resolutions in one sequence.

Linear layers, normalizations and perceptrons treat every token alike, so one call of each serves
all crops, and each weight has one gradient to add. Only attention needs to know which tokens belong
together. Shapes: B images and N tokens of one resolution, D width, T the sum of B N.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Groups = tuple[tuple[int, int], ...]  # (B, N) of each resolution, in the sequence's order


def pack(parts: Sequence[Tensor]) -> Tensor:
    """One (B, N, D) per resolution -> (T, D)."""
    flat = [part.flatten(0, 1) for part in parts]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def unpack(tokens: Tensor, groups: Groups) -> list[Tensor]:
    """(T, D) -> one (B, N, D) per resolution, without a copy."""
    counts = [images * length for images, length in groups]
    parts = [tokens] if len(groups) == 1 else list(torch.split(tokens, counts))
    return [
        torch.unflatten(part, 0, (-1, length))
        for part, (_, length) in zip(parts, groups, strict=True)
    ]


def take_first(tokens: Tensor, groups: Groups) -> Tensor:
    """CLS, the first token of each image: (T, D) -> (sum of B, D)."""
    first = [part[:, 0] for part in unpack(tokens, groups)]
    return first[0] if len(first) == 1 else torch.cat(first)


def spread(factors: Tensor, groups: Groups) -> Tensor:
    """Repeat a factor per image for each of its tokens: (rows, sum of B) -> (rows, T)."""
    parts = torch.split(factors, [images for images, _ in groups], dim=1)
    pairs = zip(parts, groups, strict=True)
    return torch.cat(
        [part[:, :, None].expand(-1, -1, length).flatten(1) for part, (_, length) in pairs], dim=1
    )
