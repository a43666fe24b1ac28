"""Computes golden numbers on a device and compares them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino import golden
from dino.models.registry import set_attention
from dino.runtime.context import Run

Found = Iterator[tuple[str, float, float]]  # what was computed, its error, the allowed error


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Where and how the modules compute.

    Attributes:
        run: The run with its device.
        limit: Largest relative L2 error in the device's number format.
        is_half: Whether that format has 16 bits.
        compiled: Whether networks are compiled.
        few: Whether one image size is enough, since each size is compiled separately.
    """

    run: Run
    limit: float
    is_half: bool = False
    compiled: bool = False
    few: bool = False

    def draw(self, key: int, *shape: int) -> Tensor:
        """Draw a float32 input on the device."""
        return self.to_device(golden.draw(key, *shape))

    def to_device(self, array: Any) -> Tensor:
        """Copy numbers from the host to the device."""
        placed: Tensor = self.run.device.to_device(torch.as_tensor(np.asarray(array, order="C")))
        return placed

    def number(self, value: float) -> Tensor:
        """Return a number as () float32 on the device."""
        return self.to_device(np.float32(value))

    def build(self, module: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
        """Load these weights into a module that attends as in training; move it to the device."""
        module.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
        attend = self.run.device.attention
        if attend is not None:
            for part in module.modules():
                set_attention(part, attend)
        return module.to(self.run.device.torch_device)

    def compile(self, module: nn.Module) -> nn.Module:
        """Compile a module if the mode requires it."""
        return self.run.device.compile_module(module) if self.compiled else module

    def compare(
        self, name: str, value: Tensor, expected: np.ndarray, limit: float | None = None
    ) -> tuple[str, float, float]:
        """Return a tensor's name, relative L2 error (infinite for a wrong shape) and limit."""
        reference = torch.from_numpy(np.asarray(expected)).double()
        result = value.detach().cpu().double()
        error = float("inf")
        if result.shape == reference.shape:
            error = float((result - reference).norm() / reference.norm().clamp(min=1e-30))
        return name, error, self.limit if limit is None else limit


def select_below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Return the arrays whose keys begin with `prefix`, with the prefix removed."""
    return {
        key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)
    }
