"""The area under the curve is that of the trapezoids drawn one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino.evaluation.retrieval.ranking import compute_average_precision


def draw_trapezoids(ranks: list[int], positives: int) -> float:
    """One step of recall for each positive found; precision before and after it, as the benchmarks define them."""
    area = 0.0
    for found, rank in enumerate(ranks):
        before = found / rank if rank else 1.0
        after = (found + 1) / (rank + 1)
        area += (before + after) / 2 / positives
    return area


@given(st.sets(st.integers(0, 300), max_size=20), st.integers(0, 5))
def test_it_is_the_sum_of_the_trapezoids(ranks: set[int], lost: int) -> None:
    ordered = sorted(ranks)
    positives = max(1, len(ordered) + lost)
    found = compute_average_precision(np.array(ordered, dtype=np.int64), positives)
    assert found == pytest.approx(draw_trapezoids(ordered, positives), abs=1e-12)
    assert 0 <= found <= 1 + 1e-12


def test_all_first_is_one_and_none_found_is_nothing() -> None:
    assert compute_average_precision(np.arange(4), 4) == 1.0
    assert compute_average_precision(np.arange(0), 4) == 0.0
    assert compute_average_precision(np.array([1]), 1) == 0.25  # between 0 of 1 and 1 of 2
