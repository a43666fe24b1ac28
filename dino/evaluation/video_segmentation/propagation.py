"""Propagate labels by nearest features (paper, section 4.2.2; Jabri et al., 2020).

The formulas are those of label_propagation and norm_mask in the original's
eval_video_segmentation.py. The original compares each position of the new frame with all positions
of all context frames, and masks those outside its neighborhood. Here the new frame is cut into
tiles, and a tile is compared only with the rectangle around it.

Shapes: T context frames, H W positions of the feature grid, D width, C labels; Q positions of a
tile, K positions of the rectangle that holds all their neighborhoods.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.1  # of the similarity's exponential; fixed in the original
# Largest tile in rows and columns. Measured on a CPU at 60 x 104 and 30 x 52, both flat around it.
TILE = (10, 13)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A rectangle of the new frame, and the rectangle of the context that it is compared with.

    Attributes:
        queries: Rows and columns of the new frame, Q positions.
        keys: All context frames, with rows and columns of each, K positions.
        penalty: (Q, 1, K) float32, 0 within the query's neighborhood, -inf outside.
    """

    queries: tuple[slice, slice]
    keys: tuple[slice, slice, slice]
    penalty: Tensor


def plan_tiles(grid: tuple[int, int], radius: int, device: torch.device) -> tuple[Tile, ...]:
    """Cover a grid with tiles of one size and keys of one size, so that all share one computation.

    If the grid is not a multiple of the tile, the last tiles overlap their neighbors. At the edges
    of the grid the keys are shifted inside instead of cropped.

    Args:
        grid: H and W.
        radius: The neighborhood is the square of side 2 radius + 1 around the query; 0 means the
            whole grid.
        device: Device of the penalties.
    """
    reach = radius or max(grid)
    rows, columns = (_cut_side(side, most, reach) for side, most in zip(grid, TILE, strict=True))

    @functools.cache  # most tiles have the same offsets in their keys, and share one penalty
    def penalize(*offsets: int) -> Tensor:
        return _build_penalty(rows[0], columns[0], offsets, reach).to(device)

    return tuple(
        Tile(
            queries=(_slice(row.queries), _slice(column.queries)),
            keys=(slice(None), _slice(row.keys), _slice(column.keys)),
            penalty=penalize(row.offset, column.offset),
        )
        for row in rows
        for column in columns
    )


class _Strip(NamedTuple):
    """Rows, or columns, of a tile: its queries and its keys."""

    queries: range
    keys: range

    @property
    def offset(self) -> int:
        """Index of the first query in the keys."""
        return self.queries.start - self.keys.start


def _cut_side(side: int, most: int, reach: int) -> list[_Strip]:
    """Cut a side into equal strips of at most `most` positions, with up to `reach` keys around."""
    length = -(-side // -(-side // most))
    width = min(side, length + 2 * reach)
    starts = (min(start, side - length) for start in range(0, side, length))
    corners = ((start, min(max(start - reach, 0), side - width)) for start in starts)
    return [
        _Strip(range(start, start + length), range(corner, corner + width))
        for start, corner in corners
    ]


def _slice(positions: range) -> slice:
    return slice(positions.start, positions.stop)


def _build_penalty(row: _Strip, column: _Strip, offsets: tuple[int, ...], reach: int) -> Tensor:
    """Build the penalty (Q, 1, K) for strips of these lengths at `offsets`."""
    down, right = (
        (torch.arange(len(strip.queries))[:, None] + offset - torch.arange(len(strip.keys))).abs()
        <= reach
        for strip, offset in zip((row, column), offsets, strict=True)
    )
    near = down[:, None, :, None] & right[None, :, None, :]
    return torch.where(near, 0.0, -torch.inf).reshape(down.shape[0] * right.shape[0], 1, -1)


class Context:
    """The frames that labels come from: the first of a clip and the last ones before the current.

    The buffers have a fixed size, because a growing context would have a new shape at every frame.
    Empty slots have a penalty.

    Attributes:
        features: (T, H, W, D) float32 of length 1.
        labels: (T, H, W, C) float32, soft as propagated.
        penalty: (T, 1) float32, 0 for a frame, -inf for an empty slot.
    """

    def __init__(self, features: Tensor, labels: Tensor, *, last: int) -> None:
        """Begin a clip.

        Args:
            features: (H, W, D) of the first frame, of length 1.
            labels: (H, W, C), one-hot.
            last: Number of last frames to keep in addition, 1 or more; T = 1 + last.
        """
        self.features, self.labels = (
            first.new_zeros((1 + last, *first.shape)) for first in (features, labels)
        )
        self.penalty = features.new_full((1 + last, 1), -torch.inf)
        # The slot of the next frame is a tensor: a changing host number would need a new graph.
        self.last, self.place = last, torch.zeros(1, dtype=torch.int64, device=features.device)
        self._write(features, labels)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Store a frame, (H, W, D) and (H, W, C), over the oldest one that is not the first."""
        self._write(features, labels)

    def _write(self, features: Tensor, labels: Tensor) -> None:
        for kept, new in ((self.features, features), (self.labels, labels)):
            kept.index_copy_(0, self.place, new[None])
        self.penalty.index_fill_(0, self.place, 0.0)
        self.place = self.place % self.last + 1


@torch.inference_mode()
def propagate_labels(
    features: Tensor, context: Context, tiles: tuple[Tile, ...], *, topk: int
) -> Tensor:
    """Average the labels of the most similar context positions, weighted by exp(cosine / 0.1).

    The most similar are the `topk` over all context frames together, plus ties with the last one.

    Args:
        features: (H, W, D) float32 of the new frame, of length 1.
        context: Frames that labels come from.
        tiles: Tiles of this grid.
        topk: Number of positions that count, or all positions of a smaller neighborhood.

    Returns:
        (H, W, C) float32. If context labels are non-negative and sum to 1, these do too.
    """
    queries = features / TEMPERATURE
    propagated = features.new_empty((*features.shape[:2], context.labels.shape[-1]))
    for tile in tiles:
        query = queries[tile.queries].flatten(0, 1)
        keys = context.features[tile.keys].flatten(0, 2)
        labels = context.labels[tile.keys].flatten(0, 2)
        scores = torch.unflatten(query @ keys.T, 1, (len(context.penalty), -1))
        scores = scores.add_(tile.penalty).add_(context.penalty).flatten(1)
        least = scores.topk(min(topk, scores.shape[1]), dim=1).values[:, -1:]
        weights = scores.masked_fill_(scores < least, -torch.inf).softmax(dim=1)
        height = tile.queries[0].stop - tile.queries[0].start
        propagated[tile.queries] = torch.unflatten(weights @ labels, 0, (height, -1))
    return propagated


@torch.inference_mode()
def decide_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Choose one label for every pixel of the frame.

    Labels are resized to the frame, bilinear, and each is stretched to [0, 1] over the frame. Then
    the largest wins. Stretching is norm_mask of the original, which divides by zero if a label is
    constant; here a constant label is unchanged.

    Args:
        labels: (H, W, C) float32.
        size: Height and width in pixels.

    Returns:
        (height, width) uint8, indices of the C labels.
    """
    soft = F.interpolate(
        labels.permute(2, 0, 1)[None], size=size, mode="bilinear", align_corners=False
    )[0]
    # On a CPU argmax alone takes eight times as long as max.
    return stretch(soft).max(dim=0).indices.to(torch.uint8)


def stretch(soft: Tensor) -> Tensor:
    """Stretch each of C maps (C, height, width) to [0, 1], unless it is constant."""
    least, most = soft.amin(dim=(1, 2), keepdim=True), soft.amax(dim=(1, 2), keepdim=True)
    return torch.where(most > least, (soft - least) / (most - least), soft)
