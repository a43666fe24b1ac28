"""Fixtures every test folder shares: golden numbers, shared data, drawn tensors and a measure of distance."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from dino.devices import open_device
from dino.flags import DeviceFlags
from tests import hpu_simulator

if hpu_simulator.why_unavailable() is None:
    # Torch asks once which accelerator there is, at the first backward pass; it must be there by then.
    hpu_simulator.load_extension()

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _draw(key: int, *shape: int) -> torch.Tensor:
    drawn = torch.from_numpy(np.random.RandomState(key).standard_normal(shape).astype(np.float32))
    return drawn.to(torch.get_default_device())


def _relative_error(value: object, expected: object) -> float:
    value, expected = (
        x.detach().cpu().double() if isinstance(x, torch.Tensor) else torch.from_numpy(np.asarray(x)).double()
        for x in (value, expected)
    )
    assert value.shape == expected.shape, f"shapes differ: {tuple(value.shape)} and {tuple(expected.shape)}"
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))


@pytest.fixture(scope="module", params=["cpu", "hpu"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The test runs on the CPU and on a simulated card: tensors are made there unless it says otherwise."""
    if request.param == "hpu":
        reason = hpu_simulator.why_unavailable()
        if reason:
            pytest.skip(f"no simulated hpu: {reason}")
        sys.path.insert(0, str(hpu_simulator.PACKAGE))
        open_device(DeviceFlags(device="hpu"))
    with torch.device(request.param) as chosen:
        yield chosen


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """A loader: ``golden("loss")`` is the dict of arrays of that file, or the test is skipped, naming the file."""

    def load(name: str) -> dict[str, np.ndarray]:
        path = SHARED / "golden" / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no golden numbers: shared/golden/{path.name} is missing beside the checkout")
        with np.load(path) as file:
            return {key: file[key] for key in file.files}

    return load


@pytest.fixture
def shared_data() -> Path:
    """The folder of shared test data, or the test is skipped."""
    if not (SHARED / "data").is_dir():
        pytest.skip("no shared data: shared/data is missing beside the checkout")
    return SHARED / "data"


@pytest.fixture
def shared_facts() -> Path:
    """The folder of recorded facts about the ancestors, or the test is skipped."""
    if not (SHARED / "facts").is_dir():
        pytest.skip("no recorded facts: shared/facts is missing beside the checkout")
    return SHARED / "facts"


@pytest.fixture
def draw() -> Callable[..., torch.Tensor]:
    """``draw(k, *shape)``: the float32 tensor the golden numbers call by that name."""
    return _draw


@pytest.fixture
def relative_error() -> Callable[[object, object], float]:
    """``relative_error(value, expected)``: the L2 norm of the difference over that of the expected value."""
    return _relative_error
