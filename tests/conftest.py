"""Fixtures every test folder shares: golden numbers, shared data, drawn tensors and a measure of
distance."""

import contextlib
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import hypothesis
import numpy as np
import pytest
import torch

import dino.golden
from dino.devices import open_device
from dino.devices.config import DeviceConfig
from dino.runtime.signals import STOP_SIGNALS
from tests import hpu_simulator
from tests.running import FAKES, hear_signals

# Cropping by torch needs no compiler. `tests/data/test_native.py` compares the native crops with it.
os.environ.setdefault("DINO_NATIVE", "0")

hypothesis.settings.register_profile("no timing", deadline=None)
hypothesis.settings.load_profile("no timing")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with long tests begin first, so that no process works alone at the end."""
    long = {item.path for item in items if item.get_closest_marker("long")}
    items.sort(key=lambda item: item.path not in long)


def _draw(key: int, *shape: int) -> torch.Tensor:
    return torch.from_numpy(dino.golden.draw(key, *shape)).to(torch.get_default_device())


def _relative_error(value: object, expected: object) -> float:
    value, expected = (
        x.detach().cpu().double()
        if isinstance(x, torch.Tensor)
        else torch.from_numpy(np.asarray(x)).double()
        for x in (value, expected)
    )
    assert value.shape == expected.shape, (
        f"shapes differ: {tuple(value.shape)} and {tuple(expected.shape)}"
    )
    return float((value - expected).norm() / expected.norm().clamp_min(1e-30))


_bridge: dict[str, ModuleType] = {}
_bridge_variables: dict[str, str] = {}


@contextlib.contextmanager
def _simulated_card() -> Iterator[None]:
    """The simulated bridge is installed and imported inside, and gone outside but for what torch
    keeps of it."""
    environment, path = dict(os.environ), list(sys.path)
    sys.path.insert(0, str(hpu_simulator.PACKAGE))
    sys.modules.update(_bridge)
    os.environ.update(_bridge_variables)
    try:
        open_device(DeviceConfig(device="hpu"))
        _bridge_variables.update(
            {name: value for name, value in os.environ.items() if name.startswith("PT_HPU_")}
        )
        yield
    finally:
        names = [name for name in sys.modules if name.split(".")[0] == "habana_frameworks"]
        _bridge.update({name: sys.modules.pop(name) for name in names})
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path


if hpu_simulator.why_unavailable() is None:
    with _simulated_card():
        """Torch asks once which accelerator there is, at the first backward pass; it must be there by then."""


@contextlib.contextmanager
def _real_gpu() -> Iterator[None]:
    """Convolutions in fp32, by algorithms that give the same bits each time; torch's switches are
    put back."""
    with pytest.MonkeyPatch.context() as switches:
        for name in ("benchmark", "allow_tf32", "deterministic"):
            switches.setattr(torch.backends.cudnn, name, name == "deterministic")
        yield


PLACES = {"cpu": contextlib.nullcontext, "hpu": _simulated_card}
if torch.cuda.is_available():
    PLACES["cuda"] = _real_gpu


@pytest.fixture(scope="module", params=PLACES)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """The test runs on the CPU, on a simulated card, and on a GPU where there is one.

    Tensors are made there unless it says otherwise.
    """
    reason = hpu_simulator.why_unavailable()
    if request.param == "hpu" and reason:
        pytest.skip(f"no simulated hpu: {reason}")
    with PLACES[request.param](), torch.device(request.param) as chosen:
        yield chosen


@pytest.fixture
def poptorch(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The stand-in for PopTorch, importable inside the test only, with nothing left of other
    tests."""
    monkeypatch.syspath_prepend(str(FAKES))
    yield importlib.import_module("poptorch")
    for name in [name for name in sys.modules if name.split(".")[0] in {"poptorch", "popdist"}]:
        del sys.modules[name]


@pytest.fixture
def hears_signals() -> Iterator[None]:
    """Signals do what they do in a terminal's foreground, and are put back."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    hear_signals()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def _forget_logging() -> None:
    """The root logger is as pytest left it, and all loggers forget what was enabled."""
    root = logging.getLogger()
    root.handlers[:] = [
        handler for handler in root.handlers if type(handler).__module__ == "_pytest.logging"
    ]
    root.setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _keep_logging() -> Iterator[None]:
    """Commands set up the root logger; no test sees what another, or a module's fixture, did."""
    _forget_logging()
    yield
    _forget_logging()


@pytest.fixture
def golden() -> Callable[[str], dict[str, np.ndarray]]:
    """A loader: ``golden("loss")`` is the dict of arrays of that file."""
    return dino.golden.load


@pytest.fixture(params=["painted", "photographs"])
def augment_numbers(request: pytest.FixtureRequest) -> dict[str, np.ndarray]:
    """What Pillow and torchvision make of a painted picture; of two photographs too, where these
    are at hand.

    Photographs do not travel with the package: their half is skipped where they are missing.
    """
    if request.param == "painted":
        return dino.golden.load("augment")
    path = SHARED / "golden" / "augment.npz"
    if not path.is_file():
        pytest.skip(f"no photographs: shared/golden/{path.name} is missing beside the checkout")
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


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
    """``relative_error(value, expected)``: the L2 norm of the difference over that of the expected
    value."""
    return _relative_error
