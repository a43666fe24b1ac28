"""What features say of images: right neighbors, outliers and near-duplicates on constructed
features."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dino.evaluation import neighbors as search
from dino.evaluation.look import find_duplicates, find_neighbors, find_outliers, list_nearest


def on_circle(*degrees: float) -> Tensor:
    angles = torch.tensor([math.radians(angle) for angle in degrees])
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def test_neighbors_are_the_nearest_others_with_their_cosines() -> None:
    found = find_neighbors(on_circle(0, 40, 10, 90), 2)
    assert found.places.tolist() == [[2, 1], [2, 0], [0, 1], [1, 2]]
    expected = [[10, 40], [30, 40], [10, 30], [50, 80]]
    torch.testing.assert_close(
        found.products, torch.tensor([[cosine(angle) for angle in row] for row in expected])
    )


def test_chunks_find_what_all_pairs_at_once_find(monkeypatch: pytest.MonkeyPatch) -> None:
    features = F.normalize(torch.randn(53, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    products = (features @ features.T).fill_diagonal_(-2)
    monkeypatch.setattr(search, "CHUNK_NUMBERS", 10 * 53)
    found = find_neighbors(features, 4)
    assert torch.equal(found.places, products.topk(4, dim=1).indices)


def test_an_image_is_no_neighbor_of_its_own_among_many_equal_ones() -> None:
    found = find_neighbors(on_circle(*[20] * 9, 50), 3)
    assert all(index not in row for index, row in enumerate(found.places.tolist()))
    torch.testing.assert_close(found.products[:9], torch.ones(9, 3))


@pytest.mark.parametrize("count", [1, 2])
def test_fewer_images_than_neighbors_are_enough(count: int) -> None:
    found = find_neighbors(on_circle(*range(count)), 10)
    assert found.places.shape == (count, count - 1)
    assert len(find_outliers(found, 5)) == (count if count > 1 else 0)
    assert len(find_duplicates(found, 0.5)) == count - 1
    assert [len(row) for row in list_nearest(found, 8)] == [count] * count


def test_rows_are_evenly_spaced_images_and_their_neighbors() -> None:
    rows = list_nearest(find_neighbors(on_circle(*range(0, 40, 2)), 2), 4)
    assert [row[0] for row in rows] == [(0, 1.0), (5, 1.0), (10, 1.0), (15, 1.0)]
    assert [index for index, _ in rows[0]] == [0, 1, 2]


def test_the_odd_image_is_the_first_outlier() -> None:
    outliers = find_outliers(find_neighbors(on_circle(0, 1, 2, 170, 3, 60), 2), 2)
    assert [index for index, _ in outliers] == [3, 5]
    assert outliers[0][1] == pytest.approx((cosine(110) + cosine(167)) / 2, abs=1e-6)


def test_near_duplicates_are_groups_around_an_image_and_no_chains() -> None:
    """0, 7, 16 and 24.5 degrees: each is near the next, and a group holds only what is near its
    first."""
    features = on_circle(100, 0, 7, 16, 24.5, 100.5, 200)
    groups = find_duplicates(find_neighbors(features, 5), cosine(9.5))
    assert [[index for index, _ in group] for group in groups] == [[0, 5], [1, 2], [3, 4]]
    assert groups[0][0] == (0, 1.0)
    assert groups[1][1][1] == pytest.approx(cosine(7), abs=1e-6)
    assert find_duplicates(find_neighbors(features, 5), 1.01) == []
