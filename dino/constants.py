"""Tensors that never change: an accelerator receives each of them once, not at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Nested tuples of numbers as a float32 tensor on a device."""
    return keep_constant(_make_numbers, device, values)


def keep_constant(make: Callable[..., Tensor], device: torch.device, arguments: Any) -> Tensor:
    """The result of `make(arguments)`, a tensor in host memory, on a device.

    Computed once per process, or at each call on the CPU, where a traced graph must own it. A graph
    that is compiled after the first call takes the kept tensor as an input. This is why the keys
    are plain and functools.cache is not used: compilers ignore it and upload at every call.
    """
    if device.type == "cpu":
        return make(arguments)
    key = (make.__module__, make.__name__, device.type, device.index, arguments)
    if key not in _kept:
        with torch.inference_mode(False):
            _kept[key] = make(arguments).to(device)
    return _kept[key]


_kept: dict[tuple[Any, ...], Tensor] = {}


def forget_constants() -> None:
    """Drop all constants, so that they are computed again."""
    _kept.clear()


def _make_numbers(values: tuple[Any, ...]) -> Tensor:
    return torch.tensor(values, device="cpu")
