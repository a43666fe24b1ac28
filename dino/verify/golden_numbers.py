"""Where golden numbers are computed, and how what was computed is compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino import golden
from dino.runtime.context import Run

Found = Iterator[
    tuple[str, float, float]
]  # what was computed, how far it is off, how far it may be


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Where and how the modules compute.

    Attributes:
        run: The device.
        limit: Relative L2 error that what runs in the device's number format may have.
        is_half: Whether that format has 16 bits.
        compiled: Whether networks are compiled.
        few: Whether one size of image does, since each is compiled anew.
    """

    run: Run
    limit: float
    is_half: bool = False
    compiled: bool = False
    few: bool = False

    def draw(self, key: int, *shape: int) -> Tensor:
        """A float32 input on the device."""
        return self.to_device(golden.draw(key, *shape))

    def to_device(self, array: Any) -> Tensor:
        """Numbers of the host to the device."""
        placed: Tensor = self.run.device.to_device(torch.as_tensor(np.asarray(array, order="C")))
        return placed

    def number(self, value: float) -> Tensor:
        """() float32 on the device."""
        return self.to_device(np.float32(value))

    def build(self, module: nn.Module, weights: Mapping[str, np.ndarray]) -> nn.Module:
        """A module with these weights, on the device, compiled where the mode says so."""
        module.load_state_dict({name: torch.as_tensor(array) for name, array in weights.items()})
        return module.to(self.run.device.torch_device)

    def compile(self, module: nn.Module) -> nn.Module:
        """As the mode has it."""
        return self.run.device.compile_module(module) if self.compiled else module

    def compare(
        self, name: str, value: Tensor, expected: np.ndarray, limit: float | None = None
    ) -> tuple[str, float, float]:
        """The relative L2 error of a tensor; of another shape it is infinite."""
        wanted = torch.from_numpy(np.asarray(expected)).double()
        got = value.detach().cpu().double()
        error = (
            float((got - wanted).norm() / wanted.norm().clamp(min=1e-30))
            if got.shape == wanted.shape
            else float("inf")
        )
        return name, error, self.limit if limit is None else limit


def select_below(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays whose keys begin with `prefix`, without it."""
    return {
        key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)
    }
