"""The area under a precision-recall curve, as the Holidays and the revisited Oxford and Paris benchmarks measure it."""

from __future__ import annotations

import numpy as np


def compute_average_precision(ranks: np.ndarray, positives: int) -> float:
    """Average precision of one query, by trapezoids (score_ap_from_ranks_1 and compute_ap of the original).

    Args:
        ranks: (n,) positions of the positives that were found, 0 for the best, ascending.
        positives: How many there are in all, at least 1; those not found count as never found.

    Returns:
        0 to 1.
    """
    found = np.arange(len(ranks))
    before = np.where(ranks == 0, 1.0, found / np.maximum(ranks, 1))
    after = (found + 1) / (ranks + 1)
    return float((before + after).sum() / (2 * positives))
