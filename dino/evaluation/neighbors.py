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

CHUNK_NUMBERS = 2**25  # float32 numbers in one chunk of products: 128 MiB
GROUP = 100  # columns per group maximum; measured on a CPU at 50,000 x 384
LEAST_GROUPS = 20  # groups per neighbor below which two passes do not pay
CELLS = 4  # IVF: cells per square root of N, faiss's rule of thumb
PROBES = 0.05  # IVF: share of the cells that a query searches
TRAINING_POINTS = 64  # IVF: vectors per cell to train the cells
SAMPLE = 1000  # queries on which the approximate search is compared


class Neighbors(NamedTuple):
    """Inner products (M, k), largest first, and the indices of those vectors (M, k) int64."""

    products: Tensor
    places: Tensor


class ExactIndex:
    """Exact search: all products, in fp32.

    A first pass in bf16 does not pay. The features of a trained backbone are so close together that
    rounding leaves hundreds of candidates for twenty neighbors.
    """

    def __init__(self, vectors: Tensor) -> None:
        """Store (N, D) float32 vectors."""
        self.vectors = vectors
        self.products = vectors.new_empty(0)

    def search(self, queries: Tensor, k: int) -> Neighbors:
        """Find the k best of (M, D) queries, k at most N. Equal M reuse the product buffer."""
        if self.products.shape[0] != len(queries):
            self.products = self.vectors.new_empty(len(queries), len(self.vectors))
        return find_largest(torch.mm(queries, self.vectors.T, out=self.products), k)


def find_largest(rows: Tensor, k: int) -> Neighbors:
    """Find the k largest of each row (M, N), largest first.

    The rows are read once, for the maximum of every group of columns. The k best groups contain the
    k largest values, because each other group has k values before it that are not smaller.
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
    """Yield (M, D) queries in chunks with bounded products with `count` vectors.

    With each chunk comes its number of real rows. Chunks are cut on the host and padded with zeros
    to a fixed size: a slice on the device, or another size, would need another graph.
    """
    rows = max(1, min(len(queries), CHUNK_NUMBERS // count))
    for chunk in torch.split(queries.cpu(), rows):
        yield F.pad(chunk, (0, 0, 0, rows - len(chunk))), len(chunk)


class CellIndex:
    """Approximate search by faiss: vectors are in cells, and a query searches the nearest (IVF)."""

    def __init__(self, vectors: Tensor) -> None:
        """Train the cells and assign (N, D) vectors to them."""
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
        """Find the k best of (M, D) queries in the searched cells. If fewer, the last repeats."""
        products, places = map(torch.from_numpy, self.index.search(queries.cpu().numpy(), k))
        missing = places < 0
        last = (~missing).sum(dim=1, keepdim=True).clamp(min=1) - 1
        products = torch.where(missing, torch.finfo(products.dtype).min, products)
        return Neighbors(
            products, torch.where(missing, places.gather(1, last), places).clamp(min=0)
        )


Index = ExactIndex | CellIndex


def build_index(kind: str, vectors: Tensor) -> Index:
    """Build an `exact` or `ivf` index over (N, D) float32 vectors."""
    return ExactIndex(vectors) if kind == "exact" else CellIndex(vectors)


def log_recall(index: Index, vectors: Tensor, queries: Tensor) -> float:
    """Log and return recall@1 of `index`, on (M, D) queries or a sample of them."""
    sample = queries[:: max(1, -(-len(queries) // SAMPLE))].to(vectors.device)
    exact = ExactIndex(vectors).search(sample, 1).places.cpu()
    approximate = index.search(sample, 1).places.cpu()
    recall = (exact == approximate).float().mean().item()
    text = "approximate search: recall@1 %.4f against the exact one, on %d queries"
    logger.info(text, recall, len(sample))
    return recall
