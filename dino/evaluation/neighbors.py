"""Nearest neighbors by inner product: exact, or approximate for very large sets.

Shapes: N vectors, M queries, D width, k neighbors.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import faiss
import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

CHUNK_NUMBERS = 2**25  # float32 numbers of one chunk of products: 128 MiB
GROUP = 100  # columns whose maximum is taken together; measured on a CPU at 50,000 x 384
LEAST_GROUPS = 20  # groups a neighbor, below which two passes do not pay
CELLS = 4  # IVF: cells a square root of N, faiss's rule of thumb
PROBES = 0.05  # IVF: share of the cells that a query looks into
TRAINING_POINTS = 64  # IVF: vectors a cell to place the cells by
SAMPLE = 1000  # queries that the approximate search is compared on


class Neighbors(NamedTuple):
    """Inner products (M, k), largest first, and the places of those vectors (M, k) int64."""

    products: Tensor
    places: Tensor


class ExactIndex:
    """All products, in fp32.

    A first pass in bf16 does not pay: the features of a trained backbone lie so close together that its rounding leaves
    hundreds of candidates for twenty neighbors.
    """

    def __init__(self, vectors: Tensor) -> None:
        """Keep (N, D) float32 vectors."""
        self.vectors = vectors
        self.products = vectors.new_empty(0)

    def search(self, queries: Tensor, k: int) -> Neighbors:
        """The k best of (M, D) queries, k at most N; best called with one M, whose products then keep their memory."""
        if self.products.shape[0] != len(queries):
            self.products = self.vectors.new_empty(len(queries), len(self.vectors))
        return find_largest(torch.mm(queries, self.vectors.T, out=self.products), k)


def find_largest(rows: Tensor, k: int) -> Neighbors:
    """The k largest of each row (M, N), largest first.

    The rows are read once, for the maximum of every group of columns; the k best groups hold the k largest, since each
    group that is left out has k numbers before it that are not smaller than its own.
    """
    count = rows.shape[1] // GROUP
    if count < LEAST_GROUPS * k:
        return Neighbors(*rows.topk(k, dim=1))
    groups = torch.unflatten(rows[:, : count * GROUP], 1, (count, GROUP))
    chosen = groups.amax(dim=2).topk(k, dim=1).indices
    places = (chosen[:, :, None] * GROUP + torch.arange(GROUP, device=rows.device)).flatten(1)
    rest = torch.arange(count * GROUP, rows.shape[1], device=rows.device).expand(len(rows), -1)
    places = torch.cat([places, rest], dim=1)
    products, order = rows.gather(1, places).topk(k, dim=1)
    return Neighbors(products, places.gather(1, order))


def split_queries(queries: Tensor, count: int) -> Iterator[tuple[Tensor, int]]:
    """Yield (M, D) queries in chunks whose products with `count` vectors are bounded, and how many of each are real.

    From the host and always as many rows, filled up with zeros: a slice on the device, or another size, would be
    another graph there.
    """
    rows = max(1, min(len(queries), CHUNK_NUMBERS // count))
    for chunk in torch.split(queries.cpu(), rows):
        yield F.pad(chunk, (0, 0, 0, rows - len(chunk))), len(chunk)


class CellIndex:
    """Approximate search by faiss: vectors lie in cells, and a query looks into the nearest of them (IVF)."""

    def __init__(self, vectors: Tensor) -> None:
        """Place the cells and sort (N, D) vectors into them."""
        count, width = vectors.shape
        cells = max(1, min(int(CELLS * math.sqrt(count)), count // TRAINING_POINTS))
        self.index = faiss.IndexIVFFlat(
            faiss.IndexFlatIP(width), width, cells, faiss.METRIC_INNER_PRODUCT
        )
        self.index.cp.max_points_per_centroid = TRAINING_POINTS
        self.index.train(vectors.cpu().numpy())
        self.index.add(vectors.cpu().numpy())
        self.index.nprobe = max(1, round(PROBES * cells))

    def search(self, queries: Tensor, k: int) -> Neighbors:
        """The k best of (M, D) queries among the cells looked into; where those hold fewer, the last is repeated."""
        products, places = map(torch.from_numpy, self.index.search(queries.cpu().numpy(), k))
        missing = places < 0
        last = (~missing).sum(dim=1, keepdim=True).clamp(min=1) - 1
        products = torch.where(missing, torch.finfo(products.dtype).min, products)
        return Neighbors(
            products, torch.where(missing, places.gather(1, last), places).clamp(min=0)
        )


Index = ExactIndex | CellIndex


def build_index(kind: str, vectors: Tensor) -> Index:
    """`exact` or `ivf` over (N, D) float32 vectors."""
    return ExactIndex(vectors) if kind == "exact" else CellIndex(vectors)


def log_recall(index: Index, vectors: Tensor, queries: Tensor) -> float:
    """Log and give the share of (M, D) queries, or of a sample of them, whose very nearest vector `index` finds."""
    sample = queries[:: max(1, -(-len(queries) // SAMPLE))].to(vectors.device)
    exact, found = (
        searched.search(sample, 1).places.cpu() for searched in (ExactIndex(vectors), index)
    )
    recall = (exact == found).float().mean().item()
    logger.info(
        "approximate search: recall@1 %.4f against the exact one, on %d queries",
        recall,
        len(sample),
    )
    return recall
