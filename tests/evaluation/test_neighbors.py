"""The nearest vectors are those of a plain sort; an approximate search says how many of them it
finds."""

import contextlib
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.evaluation.neighbors import CellIndex, ExactIndex, build_index, find_largest, log_recall
from tests import hpu_simulator


def draw_vectors(seed: int, count: int, width: int, *, spread: float) -> torch.Tensor:
    """Unit vectors around few centers; with a spread of 0 many are equal."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).standard_normal((4, width))
    rows = centers[rng.integers(0, 4, count)] + spread * rng.standard_normal((count, width))
    return F.normalize(torch.as_tensor(rows.astype(np.float32)), dim=1)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 1000),
    spread=st.sampled_from([1.0, 0.1, 1e-2, 1e-3, 0.0]),
    count=st.integers(1, 300),
    k=st.integers(1, 20),
)
def test_the_best_products_are_those_of_a_plain_sort(
    seed: int, spread: float, count: int, k: int
) -> None:
    vectors, queries = (
        draw_vectors(seed, count, 24, spread=spread),
        draw_vectors(seed + 1, 7, 24, spread=spread),
    )
    k = min(k, count)
    every = queries.double() @ vectors.double().T
    expected = every.sort(dim=1, descending=True).values[:, :k]
    found = ExactIndex(vectors).search(queries, k)
    assert torch.allclose(found.products.double(), expected, atol=1e-6)
    assert torch.allclose(every.gather(1, found.places), expected, atol=1e-6)
    assert all(len(set(row)) == k for row in found.places.tolist())


@settings(max_examples=40)
@given(
    seed=st.integers(0, 1000),
    count=st.integers(4000, 6500),
    k=st.integers(1, 3),
    levels=st.sampled_from([3, 10**6]),
)
def test_the_largest_are_found_by_groups_too(seed: int, count: int, k: int, levels: int) -> None:
    """With few levels many numbers are equal; any of them will do."""
    rows = torch.as_tensor(
        np.random.default_rng(seed).integers(0, levels, (3, count)).astype(np.float32)
    )
    found = find_largest(rows, k)
    assert torch.equal(found.products, rows.topk(k, dim=1).values)
    assert torch.equal(rows.gather(1, found.places), found.products)
    assert all(len(set(row)) == k for row in found.places.tolist())


def test_cells_find_nearly_all_and_say_how_many(caplog: pytest.LogCaptureFixture) -> None:
    vectors, queries = draw_vectors(1, 5000, 32, spread=0.3), draw_vectors(2, 300, 32, spread=0.3)
    index = build_index("ivf", vectors)
    with caplog.at_level(logging.INFO):
        recall = log_recall(index, vectors, queries)
    exact = (queries @ vectors.T).argmax(dim=1)
    found = index.search(queries, 5)
    assert recall == pytest.approx((found.places[:, 0] == exact).float().mean().item(), abs=1e-6)
    assert (
        0.3 < recall <= 1
        and f"recall@1 {recall:.4f} against the exact one, on 300 queries" in caplog.text
    )
    assert torch.allclose(
        found.products, (queries[:, None] * vectors[found.places]).sum(-1), atol=1e-5
    )


def test_cells_that_hold_fewer_than_k_repeat_their_last() -> None:
    vectors = torch.eye(8).repeat(20, 1)
    index = CellIndex(vectors)
    index.index.nprobe = 1
    found = index.search(vectors[:4], 159)
    assert found.places.min() >= 0 and found.places.max() < len(vectors)
    assert (found.products[:, :20] == 1).all()


def test_a_card_finds_them_all_itself(device: torch.device) -> None:
    with torch.device("cpu"):
        vectors, queries = draw_vectors(1, 4100, 16, spread=1.0), draw_vectors(2, 5, 16, spread=1.0)
    index = ExactIndex(vectors.to(device))
    with (
        hpu_simulator.watch()
        if device.type == "hpu"
        else contextlib.nullcontext(hpu_simulator.Seen()) as seen
    ):
        found = index.search(queries.to(device), 2)
    assert not seen.fallbacks and not seen.host_reads
    assert torch.equal(found.places.cpu(), (queries @ vectors.T).topk(2, dim=1).indices)
