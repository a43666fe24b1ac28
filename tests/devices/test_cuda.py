"""The order of what a GPU is asked to do, on a fake one: which stream copies, what waits for it. No
GPU is needed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dino.devices.cuda import CudaDevice


class FakeGpu:
    """Writes down, in order, what streams and tensors are asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.current = FakeStream(self, "computing")

    @contextlib.contextmanager
    def stream(self, stream: FakeStream) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before


class FakeStream:
    def __init__(self, gpu: FakeGpu, name: str) -> None:
        self.gpu, self.name = gpu, name

    def wait_stream(self, other: FakeStream) -> None:
        self.gpu.asked.append((self.name, "waits for", other.name))


class FakeTensor(Tensor):
    """A host tensor whose copy notes the stream it is made on."""

    gpu: FakeGpu
    pinned: bool

    def is_pinned(self, *_: Any) -> bool:
        return self.pinned

    def to(self, device: torch.device, non_blocking: bool) -> FakeTensor:
        assert non_blocking and device.type == "cuda"
        self.gpu.asked.append((self.gpu.current.name, "copies"))
        return fake(self.gpu, self, pinned=False)

    def record_stream(self, stream: FakeStream) -> None:
        self.gpu.asked.append(("memory kept for", stream.name))


def fake(gpu: FakeGpu, values: Tensor, *, pinned: bool) -> FakeTensor:
    tensor = values.as_subclass(FakeTensor)
    tensor.gpu, tensor.pinned = gpu, pinned
    return tensor


class Pair(NamedTuple):
    pixels: Tensor
    labels: Tensor


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    gpu = FakeGpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: FakeStream(gpu, "copying"))
    monkeypatch.setattr(torch.cuda, "stream", gpu.stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: gpu.current)
    for name in ("benchmark", "allow_tf32"):
        monkeypatch.setattr(torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    return gpu


def test_pinned_memory_is_copied_beside_the_computation_which_waits_for_it(gpu: FakeGpu) -> None:
    device = CudaDevice("fp32", 0)
    batch = Pair(*(fake(gpu, torch.arange(3) + k, pinned=True) for k in range(2)))
    placed = device.to_device(batch)
    assert type(placed) is Pair
    assert [field.tolist() for field in placed] == [[0, 1, 2], [1, 2, 3]]
    one = [
        ("copying", "copies"),
        ("computing", "waits for", "copying"),
        ("memory kept for", "computing"),
    ]
    assert gpu.asked == one + one


def test_what_is_not_pinned_is_copied_in_turn(gpu: FakeGpu) -> None:
    """Small things made on the way, and batches that are on the device already."""
    CudaDevice("fp32", 0).to_device(fake(gpu, torch.arange(3), pinned=False))
    assert gpu.asked == [("computing", "copies")]
