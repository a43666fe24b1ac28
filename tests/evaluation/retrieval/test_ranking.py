"""Rankings are judged by the revisited protocol; the area under a curve is that of trapezoids drawn
one by one."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from dino.evaluation.retrieval.oxford_paris import Truth
from dino.evaluation.retrieval.ranking import (
    compute_average_precision,
    rank,
    score_landmarks,
    score_ranks,
)
from dino.golden import load_settings
from tests.evaluation.conftest import judge_plainly

Golden = Callable[[str], dict[str, np.ndarray]]


def draw_trapezoids(ranks: list[int], positives: int) -> float:
    """One step of recall for each positive found; precision before and after it, as the benchmarks
    define them."""
    area = 0.0
    for found, place in enumerate(ranks):
        before = found / place if place else 1.0
        after = (found + 1) / (place + 1)
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


def test_scores_are_the_originals(golden: Golden) -> None:
    numbers, told = golden("retrieval"), load_settings()["retrieval_gnd"]
    found = score_ranks(
        numbers["ranks"], [(np.array(entry["ok"]), np.array(entry["junk"])) for entry in told]
    )
    np.testing.assert_allclose(found.average_precisions, numbers["aps"], rtol=1e-12)
    np.testing.assert_allclose(found.precisions, numbers["prs"], rtol=1e-12)
    np.testing.assert_allclose(found.mean_precisions, numbers["pr"], rtol=1e-12)
    assert found.map == pytest.approx(float(numbers["map"]), rel=1e-12)


@given(st.permutations(range(30)), st.lists(st.integers(0, 3), min_size=30, max_size=30))
def test_a_ranking_is_judged_by_walking_down_it(ranked: list[int], kinds: list[int]) -> None:
    """Kinds: unrelated, easy, hard, junk."""
    easy, hard, junk = (
        [image for image, kind in enumerate(kinds) if kind == wanted] for wanted in (1, 2, 3)
    )
    truth = Truth(*(np.array(part, dtype=np.int64) for part in (easy, hard, junk)))
    found = score_landmarks(np.array(ranked)[:, None], [truth])
    for level, right, ignored in (("M", easy + hard, junk), ("H", hard, junk + easy)):
        score = found[level]
        if right:
            area, precisions = judge_plainly(ranked, set(right), set(ignored))
            assert score.map == pytest.approx(area)
            assert score.mean_precisions.tolist() == pytest.approx(precisions)
        else:
            assert math.isnan(score.map) and np.isnan(score.mean_precisions).all()


def test_queries_without_positives_do_not_count() -> None:
    ranks, none = np.array([[0, 0, 1], [1, 1, 0]]), np.array([], dtype=np.int64)
    found = score_ranks(ranks, [(np.array([0]), none), (none, none), (np.array([0]), none)])
    assert found.map == pytest.approx((1 + 0.25) / 2)
    assert np.isnan(found.average_precisions).tolist() == [False, True, False]
    assert found.mean_precisions[0] == pytest.approx(0.5)


def test_the_most_similar_come_first(device: torch.device) -> None:
    rng = np.random.RandomState(0)
    database, queries = (
        F.normalize(torch.tensor(rng.randn(count, 8)).float(), dim=1) for count in (40, 5)
    )
    expected = np.argsort(
        -(database.cpu().double().numpy() @ queries.cpu().double().numpy().T), axis=0
    )
    assert np.array_equal(rank(database.to(device), queries.to(device)), expected)
