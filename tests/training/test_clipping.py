"""Clipping: every gradient on its own, as in the original, and bad numbers are noticed."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dino.training.clipping import clip_gradients

pytestmark = pytest.mark.usefixtures("device")

SHAPES = [(5, 7), (7,), (3, 3, 3, 3), (1,)]


def test_clipping_gives_the_gradients_and_norms_of_the_original(golden, draw, relative_error):
    arrays = golden("optim")
    parameters = [nn.Parameter(draw(40 + index, *shape)) for index, shape in enumerate(SHAPES)]
    for index, (parameter, scale) in enumerate(zip(parameters, (10, 0.1, 1, 3), strict=True)):
        parameter.grad = draw(50 + index, *parameter.shape) * scale
    total, finite = clip_gradients(parameters, 3.0)
    for index, parameter in enumerate(parameters):
        assert relative_error(parameter.grad, arrays[f"clip/g{index}"]) <= 1e-6
    assert float(total) == pytest.approx(float(np.linalg.norm(arrays["clip/norms"])), rel=1e-6)
    assert float(finite) == 1.0


@pytest.mark.parametrize("fused", [False, True])
@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), scale=st.floats(1e-6, 1e6), limit=st.floats(1e-3, 1e3))
def test_every_gradient_is_clipped_on_its_own_as_by_a_loop(fused, seed, scale, limit):
    torch.manual_seed(seed)
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    gradients = [scale * 10.0**index * torch.randn(shape) for index, shape in enumerate(SHAPES)]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    total, finite = clip_gradients(parameters, limit, fused=fused)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        norm = float(gradient.double().norm())
        expected = gradient.double() * min(1.0, limit / (norm + 1e-6))
        torch.testing.assert_close(parameter.grad.double(), expected, rtol=1e-5, atol=1e-12)
    assert float(total) == pytest.approx(
        math.sqrt(sum(float(g.double().norm()) ** 2 for g in gradients)), rel=1e-5
    )
    assert float(finite) == 1.0


def test_clipping_off_leaves_gradients_to_the_bit():
    parameter = nn.Parameter(torch.zeros(3))
    parameter.grad = torch.tensor([1e5, -1e5, 3.0])
    total, finite = clip_gradients([parameter], 0.0)
    assert parameter.grad.tolist() == [1e5, -1e5, 3.0]
    assert (float(total), float(finite)) == (pytest.approx(math.sqrt(2) * 1e5), 1.0)


@pytest.mark.parametrize("limit", [3.0, 0.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_anywhere_is_noticed(limit, bad):
    parameters = [nn.Parameter(torch.zeros(shape)) for shape in SHAPES]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    parameters[2].grad[0, 1, 2, 0] = bad
    _, finite = clip_gradients(parameters, limit)
    assert float(finite) == 0.0


def test_a_frozen_parameter_takes_no_part_in_clipping():
    one, two = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2), requires_grad=False)
    one.grad = torch.tensor([3.0, 4.0])
    assert float(clip_gradients([one, two], 10.0)[0]) == 5.0
