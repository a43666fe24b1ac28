"""Tensors that never change are made once a device."""

import pytest
import torch

from dino.constants import forget_constants, keep_constant, to_constant

pytestmark = pytest.mark.usefixtures("device")


def test_a_device_gets_a_constant_once_and_a_graph_traced_on_the_host_its_own(device):
    before, after = (to_constant((1.0, 2.0), device) for _ in range(2))
    assert (after is before) == (device.type != "cpu")
    assert after.device.type == device.type and after.tolist() == before.tolist() == [1.0, 2.0]
    forget_constants()
    assert to_constant((1.0, 2.0), device) is not before


def make_ones(count):
    return torch.ones(count, device="cpu")


def make_zeros(count):
    return torch.zeros(count, device="cpu")


def test_constants_differ_by_what_makes_them_and_by_its_arguments(device):
    kept = [
        keep_constant(make, device, count) for make in (make_ones, make_zeros) for count in (2, 3)
    ]
    assert [part.tolist() for part in kept] == [[1, 1], [1, 1, 1], [0, 0], [0, 0, 0]]
