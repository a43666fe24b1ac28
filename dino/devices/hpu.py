"""Intel Gaudi, through the Habana bridge. Not yet verified on hardware."""

from __future__ import annotations

import importlib
import importlib.util
import os

import torch

from dino.devices.eager import EagerDevice
from dino.errors import DeviceError


def is_bridge_installed() -> bool:
    """Whether the Habana bridge can be imported; it is not imported for that."""
    return importlib.util.find_spec("habana_frameworks") is not None


class HpuDevice(EagerDevice):
    """One Gaudi card, hccl; fp32 and bf16."""

    def __init__(self, precision: str, lazy_mode: bool | None) -> None:
        """Import the bridge in the asked mode and open the card of this process.

        Raises:
            DeviceError: No bridge, a mode that comes too late, or fp16.
        """
        if not is_bridge_installed():
            raise DeviceError(
                "--device hpu: the Habana bridge (habana_frameworks) is not installed; "
                "start from a Gaudi container, or use --device cuda or cpu"
            )
        if precision == "fp16":
            raise DeviceError("--precision fp16 needs --device cuda; use bf16 or fp32 on hpu")
        if lazy_mode is not None:
            os.environ["PT_HPU_LAZY_MODE"] = str(int(lazy_mode))
        core = importlib.import_module("habana_frameworks.torch.core")
        importlib.import_module("habana_frameworks.torch.distributed.hccl")
        self.lazy = bool(lazy_mode)
        self.mark_step = core.mark_step
        super().__init__("hpu", torch.device("hpu"), "hccl", precision)

    def describe(self) -> str:
        """See the contract."""
        return f"hpu, {self.precision}, {'lazy' if self.lazy else 'eager'} mode"

    def end_phase(self) -> None:
        """Cut the lazy graph."""
        if self.lazy:
            self.mark_step()
