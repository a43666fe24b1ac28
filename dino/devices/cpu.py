"""The host processor."""

from __future__ import annotations

import torch

from dino.devices.eager import EagerDevice
from dino.devices.op_lists import OpLists
from dino.errors import DeviceError


class CpuDevice(EagerDevice):
    """Host memory, gloo; fp32, bf16 and op lists."""

    def __init__(self, precision: str, lists: OpLists | None = None) -> None:
        """Open it.

        Raises:
            DeviceError: fp16, which has no loss scaling here.
        """
        if precision == "fp16":
            raise DeviceError("--precision fp16 needs --device cuda; use bf16 or fp32 on the cpu")
        super().__init__("cpu", torch.device("cpu"), "gloo", precision, lists)
