"""Stochastic depth: whole images, the expectation kept, the same key the same factors."""

import numpy as np
import pytest
import torch

from dino.models.depth import DropPath, draw_depth, scale_branch

pytestmark = pytest.mark.usefixtures("device")


def test_drop_path_is_the_identity_in_eval_and_at_rate_zero():
    branch = torch.randn(4, 3, 2)
    assert DropPath(0.7).eval()(branch) is None
    assert DropPath(0.0).train()(branch) is None
    assert DropPath(0.7).eval()(branch, torch.zeros(4)) is None
    assert DropPath(0.0).train()(branch, torch.zeros(4)) is None
    assert scale_branch(branch, None) is branch


def test_drop_path_drops_whole_images_and_keeps_the_expectation():
    torch.manual_seed(0)
    branch = torch.ones(20000, 3, 2)
    result = scale_branch(branch, DropPath(0.25).train()(branch))
    first = result[:, :1, :1]
    assert torch.equal(result, first.expand_as(result))
    assert set(first.unique().tolist()) == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert abs(float(result.mean()) - 1) < 0.02
    assert abs(float((first == 0).float().mean()) - 0.25) < 0.02


def test_drop_path_at_rate_one_gives_zeros():
    assert torch.equal(DropPath(1.0).train()(torch.ones(8, 3, 2)), torch.zeros(8, 1, 1))


def test_given_factors_are_used_and_nothing_is_drawn():
    branch, given, before = (
        torch.ones(3, 2, 2),
        torch.tensor([0.0, 2.0, 1.0]),
        torch.get_rng_state(),
    )
    result = scale_branch(branch, DropPath(0.5).train()(branch, given))
    assert result[:, 0, 0].tolist() == [0.0, 2.0, 1.0] and torch.equal(
        result, result[:, :1, :1].expand_as(result)
    )
    assert torch.equal(torch.get_rng_state(), before)


def test_drawn_factors_are_zero_or_keep_the_expectation_of_each_row():
    rates = (0.0, 0.25, 1.0)
    drawn = draw_depth(rates, 20000, (1, 2, 3))
    assert drawn.shape == (6, 20000) and drawn.dtype == np.float32
    for row, rate in zip(drawn, np.repeat(rates, 2), strict=True):
        kept = {1.0 / np.float32(1.0 - rate)} if rate < 1 else set()
        assert set(np.unique(row)) == kept | ({0.0} if rate else set())
        assert abs(np.mean(row == 0) - rate) < 0.02
    assert abs(np.mean((drawn[2] == 0) == (drawn[3] == 0)) - (0.75**2 + 0.25**2)) < 0.02, (
        "branches drop by themselves"
    )


def test_the_key_decides_every_factor():
    first = draw_depth((0.5,), 64, (0, 5, 1, 0))
    assert np.array_equal(first, draw_depth((0.5,), 64, (0, 5, 1, 0)))
    for other in ((1, 5, 1, 0), (0, 6, 1, 0), (0, 5, 0, 0), (0, 5, 1, 1)):
        assert not np.array_equal(first, draw_depth((0.5,), 64, other))
