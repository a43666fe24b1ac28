"""Everything that knows which chip it runs on; nothing outside this folder does."""

from __future__ import annotations

import logging

import torch

from dino.devices.base import Device
from dino.devices.cpu import CpuDevice
from dino.devices.cuda import CudaDevice
from dino.devices.hpu import HpuDevice, is_bridge_installed
from dino.devices.op_lists import read_op_lists
from dino.devices.precision import resolve_precision
from dino.errors import DeviceError
from dino.flags import DeviceFlags, PrecisionFlags

logger = logging.getLogger(__name__)


def choose_device(asked: str | None) -> str:
    """The device's name: as asked, else hpu where the bridge is installed, else cuda where available, else cpu."""
    if asked:
        return asked
    if is_bridge_installed():
        return "hpu"
    return "cuda" if torch.cuda.is_available() else "cpu"


def open_device(
    flags: DeviceFlags,
    *,
    local_rank: int = 0,
    precision: PrecisionFlags | None = None,
    explicit: frozenset[str] = frozenset(),
) -> Device:
    """Open the device of this process; without `precision` it computes in fp32.

    Raises:
        DeviceError: The device, or the number format on it, is not available here.
        OptionError: Flags that contradict each other.
    """
    name = choose_device(flags.device)
    number_format = resolve_precision(precision, explicit, name) if precision else "fp32"
    lists = read_op_lists(precision) if precision and number_format == "ops" else None
    if lists is not None and precision is not None and precision.hmp_verbose:
        for line in lists.describe():
            logger.info("%s", line)
    if name == "ipu":
        raise DeviceError("--device ipu needs the poptorch wrapper, which is not available yet; use --device cpu")
    if name == "hpu":
        compiles = precision is not None and precision.compile
        return HpuDevice(number_format, lists, lazy_mode=flags.lazy_mode, compiles=compiles)
    return CudaDevice(number_format, local_rank, lists) if name == "cuda" else CpuDevice(number_format, lists)
