"""How many of the host's cores a Gaudi's own process keeps busy."""

import pytest

from dino.devices.hpu.device import HpuDevice


@pytest.mark.parametrize(("lazy", "cores"), [(True, 0), (False, 2)])
def test_modes_that_launch_each_op_leave_fewer_cores_to_the_loaders(lazy, cores):
    device = object.__new__(HpuDevice)
    device.lazy = lazy
    assert device.reserved_cores == cores
