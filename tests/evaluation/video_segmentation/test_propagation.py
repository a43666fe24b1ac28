"""Labels are propagated as by a plain loop over all positions, to the original's numbers, in
bounded memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from dino.evaluation.video_segmentation import propagation
from dino.evaluation.video_segmentation.propagation import (
    Context,
    decide_labels,
    plan_tiles,
    propagate_labels,
    stretch,
)
from tests import hpu_simulator

Golden = Callable[[str], dict[str, np.ndarray]]
Draw = Callable[..., torch.Tensor]
CPU = torch.device("cpu")


def test_golden_numbers(golden: Golden, draw: Draw, device: torch.device) -> None:
    numbers = golden("video_propagation")
    base = draw(800, 54, 16)
    frames = [
        F.normalize(base + 0.3 * draw(810 + i, 54, 16), dim=1).reshape(6, 9, 16) for i in range(5)
    ]
    first = (
        F.one_hot(torch.as_tensor(numbers["first_labels"].astype(np.int64), device="cpu"), 3)
        .float()
        .to(device)
    )
    context, tiles = Context(frames[0], first, last=4), plan_tiles((6, 9), 2, device)
    for index, frame in enumerate(frames[1:], start=1):
        labels = propagate_labels(frame, context, tiles, topk=5)
        context.add(frame, labels)
        found = labels.cpu().permute(2, 0, 1).numpy()
        np.testing.assert_allclose(found, numbers[f"seg/{index}"][0], atol=1e-5)
    np.testing.assert_allclose(
        stretch(labels.permute(2, 0, 1)).cpu().numpy(), numbers["norm_mask"], atol=1e-5
    )


def propagate_by_loops(
    target: np.ndarray, features: np.ndarray, labels: np.ndarray, *, radius: int, topk: int
) -> np.ndarray:
    """One position at a time, in float64: all of its neighborhood in all frames, the best, their
    weighted mean."""
    height, width = target.shape[:2]
    found = np.zeros((height, width, labels.shape[-1]))
    for row in range(height):
        for column in range(width):
            near = [
                (float(target[row, column] @ features[frame, y, x]), labels[frame, y, x])
                for frame in range(len(features))
                for y in range(height)
                for x in range(width)
                if not radius or max(abs(y - row), abs(x - column)) <= radius
            ]
            least = sorted((score for score, _ in near), reverse=True)[:topk][-1]
            chosen = [(math.exp(score / 0.1), label) for score, label in near if score >= least]
            found[row, column] = sum(weight * label for weight, label in chosen) / sum(
                weight for weight, _ in chosen
            )
    return found


def draw_features(rng: np.random.Generator, shape: tuple[int, ...], *, tied: bool) -> np.ndarray:
    """Vectors of length 1; tied ones lie on few axes, so that similarities are -1, 0 and 1 without
    rounding."""
    if not tied:
        drawn = rng.standard_normal((*shape, 8)).astype(np.float32)
        return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)
    return np.eye(3, dtype=np.float32)[rng.integers(0, 3, shape)] * rng.choice(
        [-1, 1], (*shape, 1)
    ).astype(np.float32)


@dataclass(frozen=True)
class Case:
    """One call: the grid, what is asked, and how the numbers are drawn."""

    height: int
    width: int
    radius: int
    topk: int
    frames: int
    empty: int
    labels: int
    tied: bool
    seed: int


CASES = st.builds(
    Case,
    height=st.integers(1, 12),
    width=st.integers(1, 15),
    radius=st.integers(0, 16),
    topk=st.integers(1, 40),
    frames=st.integers(1, 8),
    empty=st.integers(0, 2),
    labels=st.integers(1, 3),
    tied=st.booleans(),
    seed=st.integers(0, 1000),
).filter(lambda case: case.frames * (case.height * case.width) ** 2 < 30_000)  # the loop is slow


@settings(max_examples=150, suppress_health_check=[HealthCheck.filter_too_much])
@given(CASES)
def test_it_is_a_plain_loop(case: Case) -> None:
    """Whatever the grid, the neighborhood, the number of neighbors and of frames, and however many
    are alike."""
    rng, grid = np.random.default_rng(case.seed), (case.height, case.width)
    features = draw_features(rng, (case.frames + 1, *grid), tied=case.tied)
    soft = rng.random((case.frames, *grid, case.labels)).astype(np.float32)
    expected = propagate_by_loops(
        features[-1], features[:-1], soft, radius=case.radius, topk=case.topk
    )
    tensors, known = torch.from_numpy(features), torch.from_numpy(soft)
    context = Context(tensors[0], known[0], last=max(1, case.frames - 1 + case.empty))
    for index in range(1, case.frames):
        context.add(tensors[index], known[index])
    found = propagate_labels(
        tensors[-1], context, plan_tiles(grid, case.radius, CPU), topk=case.topk
    )
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


def test_the_oldest_frame_but_the_first_gives_way(device: torch.device) -> None:
    """Every frame has one label of its own; a position that is like all frames takes them in equal
    parts."""
    alike = torch.ones(1, 1, 1)
    context = Context(alike, torch.eye(6)[0][None, None], last=2)
    expected = [{0}, {0, 1}, {0, 1, 2}, {0, 2, 3}, {0, 3, 4}, {0, 4, 5}]
    for newest, kept in enumerate(expected):
        if newest:
            context.add(alike, torch.eye(6)[newest][None, None])
        found = propagate_labels(alike, context, plan_tiles((1, 1), 0, device), topk=9)[0, 0]
        torch.testing.assert_close(
            found, torch.tensor([1 / len(kept) if label in kept else 0 for label in range(6)])
        )


@settings(max_examples=100)
@given(height=st.integers(1, 70), width=st.integers(1, 110), radius=st.integers(0, 30))
def test_tiles_of_one_size_cover_the_grid_and_hold_every_neighborhood(
    height: int, width: int, radius: int
) -> None:
    tiles = plan_tiles((height, width), radius, CPU)
    covered = np.zeros((height, width), dtype=int)
    numbers = torch.arange(height * width).reshape(height, width)
    for tile in tiles:
        covered[tile.queries] += 1
    assert covered.min() == 1
    assert (
        len(
            {
                (numbers[tile.queries].shape, numbers[tile.keys[1:]].shape, tile.penalty.shape)
                for tile in tiles
            }
        )
        == 1
    )
    for tile in (tiles[0], tiles[len(tiles) // 2], tiles[-1]):
        queries, keys = numbers[tile.queries].flatten(), numbers[tile.keys[1:]].flatten()
        for place in {0, len(queries) // 2, len(queries) - 1}:
            row, column = divmod(int(queries[place]), width)
            reach = radius or 1000
            block = numbers[
                max(0, row - reach) : row + reach + 1, max(0, column - reach) : column + reach + 1
            ]
            assert set(keys[tile.penalty[place, 0] == 0].tolist()) == set(block.flatten().tolist())


class Largest(TorchDispatchMode):
    """Remembers the numbers of the largest tensor that any operator made."""

    numbers = 0

    def __torch_dispatch__(
        self, op: object, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        made = op(*args, **(kwargs or {}))  # type: ignore[operator]
        self.numbers = max(self.numbers, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_memory_does_not_grow_with_the_square_of_the_grid(device: torch.device) -> None:
    """480p at patch 8: the textbook's similarities are 8 x 6240 x 6240 numbers; here the largest
    tensor is a 200th."""
    grid = (60, 104)
    features, labels = F.normalize(torch.rand(*grid, 4), dim=-1), torch.rand(*grid, 2)
    context, tiles = Context(features, labels, last=7), plan_tiles(grid, 12, device)
    with Largest() as largest:
        propagate_labels(features, context, tiles, topk=5)
    assert largest.numbers < 8 * (grid[0] * grid[1]) ** 2 / 200
    assert (
        sum({tile.penalty.data_ptr(): tile.penalty.numel() for tile in tiles}.values())
        < 8 * 6240 * 384
    )


def test_a_frame_is_one_label_a_pixel(device: torch.device) -> None:
    """Against norm_mask and the interpolation by a factor, as the original writes them."""
    soft = torch.rand(6, 10, 3, device="cpu")
    soft[..., 2] *= 0.05  # a faint label wins where it is at its strongest
    scaled = F.interpolate(
        soft.permute(2, 0, 1)[None], scale_factor=8, mode="bilinear", align_corners=False
    )[0]
    for channel in scaled:
        channel -= channel.min()
        channel /= channel.max()
    found = decide_labels(soft.to(device), (48, 80)).cpu()
    assert found.dtype == torch.uint8 and found.shape == (48, 80)
    assert (found != scaled.argmax(dim=0)).float().mean() < 1e-3
    assert set(found.unique().tolist()) == {0, 1, 2}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("levels", "expected"), [((1.0,), 0), ((0.0, 1.0), 1), ((0.25, 0.75), 1), ((0.5, 0.5), 0)]
)
def test_labels_that_are_the_same_everywhere_are_not_stretched(
    levels: tuple[float, ...], expected: int
) -> None:
    """There the original divides by zero."""
    found = decide_labels(torch.tensor(levels).expand(3, 4, len(levels)), (24, 32)).cpu()
    assert set(found.flatten().tolist()) == {expected}


def test_after_the_first_frames_a_card_sees_nothing_new(device: torch.device) -> None:
    if device.type != "hpu":
        pytest.skip("counts what the simulated card sees")
    frames, labels = F.normalize(torch.randn(6, 12, 15, 8), dim=-1), torch.rand(12, 15, 2)
    context, tiles = Context(frames[0], labels, last=2), plan_tiles((12, 15), 3, device)

    def step(index: int) -> torch.Tensor:
        found = propagate_labels(frames[index], context, tiles, topk=5)
        context.add(frames[index], found)
        return decide_labels(found, (96, 120))

    step(1)
    with hpu_simulator.watch() as seen:
        for index in range(2, 6):
            step(index)
    assert (seen.host_reads, seen.new_ops, dict(seen.fallbacks), dict(seen.float64)) == (
        [],
        [],
        {},
        {},
    )
    assert seen.ops and seen.uploads.count == 0


def test_the_tile_does_not_matter(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    features, labels = F.normalize(torch.randn(2, 20, 21, 8), dim=-1), torch.rand(20, 21, 2)
    found = []
    for tile in ((10, 13), (1, 1), (7, 30), (20, 21)):
        monkeypatch.setattr(propagation, "TILE", tile)
        tiles = plan_tiles((20, 21), 4, device)
        found.append(
            propagate_labels(features[1], Context(features[0], labels, last=1), tiles, topk=5)
        )
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-5, rtol=0)
