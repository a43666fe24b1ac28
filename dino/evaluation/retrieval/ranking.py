"""Score rankings as the Holidays and the revisited Oxford and Paris benchmarks do.

This is utils.compute_map of the original. Shapes: N database images, Q queries, K depths, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from dino.evaluation.retrieval.oxford_paris import Truth

DEPTHS = (1, 5, 10)  # of the mean precision


@dataclass(frozen=True, kw_only=True)
class RankingScore:
    """Scores of rankings, 0 to 1. A query without positives has nan, and means ignore it.

    Attributes:
        average_precisions: (Q,).
        precisions: (Q, K), share of positives among the first k, or up to the last positive if that
            comes earlier.
    """

    average_precisions: np.ndarray
    precisions: np.ndarray

    @property
    def map(self) -> float:
        """Mean over queries with positives; nan without any."""
        return float(_mean(self.average_precisions))

    @property
    def mean_precisions(self) -> np.ndarray:
        """Mean over queries with positives, (K,)."""
        return _mean(self.precisions)


def _mean(rows: np.ndarray) -> np.ndarray:
    counted = rows[~np.isnan(rows.reshape(len(rows), -1)[:, 0])]
    return counted.mean(axis=0) if len(counted) else np.full(rows.shape[1:], np.nan)


def rank(database: Tensor, queries: Tensor) -> np.ndarray:
    """Sort the database by similarity to each query, on the CPU: some devices sort slowly.

    Args:
        database: (N, D), normalized.
        queries: (Q, D), normalized.

    Returns:
        (N, Q) indices, each column sorted from the most similar image.
    """
    similarity = (database @ queries.T).cpu()
    return similarity.argsort(dim=0, descending=True, stable=True).numpy()


def score_landmarks(ranks: np.ndarray, truths: Sequence[Truth]) -> dict[str, RankingScore]:
    """Score rankings (N, Q) by the protocols Medium and Hard."""
    medium = [(np.concatenate([truth.easy, truth.hard]), truth.junk) for truth in truths]
    hard = [(truth.hard, np.concatenate([truth.junk, truth.easy])) for truth in truths]
    return {"M": score_ranks(ranks, medium), "H": score_ranks(ranks, hard)}


def score_ranks(ranks: np.ndarray, truths: Sequence[tuple[np.ndarray, np.ndarray]]) -> RankingScore:
    """Score rankings.

    Args:
        ranks: (N, Q) database indices, the best first.
        truths: Positives and junk of each query. Junk is ignored, as if it were not ranked.
    """
    judged = [_score_query(column, *truth) for column, truth in zip(ranks.T, truths, strict=True)]
    return RankingScore(
        average_precisions=np.array([precision for precision, _ in judged]),
        precisions=np.array([precisions for _, precisions in judged]),
    )


def _score_query(
    ranked: np.ndarray, positives: np.ndarray, junk: np.ndarray
) -> tuple[float, list[float]]:
    if not len(positives):
        return np.nan, [np.nan] * len(DEPTHS)
    places = np.flatnonzero(np.isin(ranked, positives))
    is_junk = np.isin(ranked, junk)
    found = places - (is_junk.cumsum() - is_junk)[places]
    depths = [min(found[-1] + 1, depth) for depth in DEPTHS]
    precisions = [float((found < depth).sum() / depth) for depth in depths]
    return compute_average_precision(found, len(positives)), precisions


def compute_average_precision(ranks: np.ndarray, positives: int) -> float:
    """Compute the average precision of one query by trapezoids.

    This is score_ap_from_ranks_1 and compute_ap of the original.

    Args:
        ranks: (n,) ranks of the retrieved positives, ascending from 0 for the best.
        positives: Number of all positives, at least 1. Those not retrieved lower the score.

    Returns:
        0 to 1.
    """
    earlier = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, earlier / np.maximum(ranks, 1))
    after = (earlier + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * positives))
