"""All code that depends on the chip; nothing outside this folder does.

Importing this package imports neither torch nor a device, so that the doctor can use `hpu.software`
and `hpu.mode` even if torch is broken.
"""

from __future__ import annotations

import functools
import logging
import sys
from typing import TYPE_CHECKING

from dino.devices.config import DeviceConfig, IpuConfig, PrecisionConfig
from dino.devices.hpu.software import is_bridge_installed
from dino.errors import OptionError

if TYPE_CHECKING:
    from dino.devices.base import Device
    from dino.devices.cpu import CpuDevice
    from dino.devices.cuda import CudaDevice
    from dino.devices.ipu.device import IpuDevice
    from dino.devices.op_lists import OpLists

logger = logging.getLogger(__name__)


def choose_device(asked: str | None) -> str:
    """Return the device's name: as asked, else hpu (if the bridge is installed), cuda or cpu."""
    if asked:
        return asked
    if is_bridge_installed():
        return "hpu"
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if sys.platform == "darwin":
        _explain_mac()
    return "cpu"


def has_batch_norm(asked: str | None) -> bool:
    """Whether the device trains batch norm in the head; told before it is opened."""
    return choose_device(asked) != "ipu"


@functools.cache
def _explain_mac() -> None:
    """Say once in a process why a Mac computes on its CPU."""
    logger.info("MPS, the GPU of a Mac, is not supported: the CPU runs")


def open_device(
    config: DeviceConfig,
    *,
    local_rank: int = 0,
    precision: PrecisionConfig | None = None,
    compiled: IpuConfig | None = None,
    synthetic: bool = False,
    output_dir: str | None = None,
) -> Device:
    """Open the device of this process; without `precision` it computes in fp32.

    Args:
        config: Which device to open.
        local_rank: Rank of this process on its host.
        precision: The number format for training.
        compiled: How to compile a step, for devices that compile all of it.
        synthetic: Whether no images are read; some devices then generate their own input.
        output_dir: A training run's output folder. A device with several execution modes keeps the
            mode of the checkpoint there.

    Raises:
        DeviceError: The device or its number format is not available here.
        OptionError: Settings contradict each other.
    """
    from dino.devices.precision import resolve_precision

    name = choose_device(config.device)
    number_format = resolve_precision(precision, name) if precision else "fp32"
    lists = _read_lists(precision) if precision and number_format == "ops" else None
    compiles = precision.compile if precision else None
    if precision and precision.cuda_graph:
        _check_graph(name, number_format)
    if name == "ipu":
        if precision and precision.attention:
            raise OptionError("`attention` is not for `device` ipu", remedy="leave it out")
        return _open_whole(number_format, compiled, synthetic, compiles)
    _refuse_foreign(compiled, name)
    if name == "hpu":
        from dino.checkpoint import read_mode
        from dino.devices.hpu.device import HpuDevice

        return HpuDevice(
            number_format,
            lists,
            lazy_mode=config.lazy_mode,
            compiles=compiles,
            kept=read_mode(output_dir) if output_dir else None,
            trains=precision is not None,
            local_rank=local_rank,
            output_dir=output_dir,
            attention=precision.attention if precision else None,
        )
    device = _open_usual(name, number_format, local_rank, lists)
    device.compiles = bool(compiles)
    device.replays = bool(precision and precision.cuda_graph)
    if precision and precision.attention == "explicit":
        from dino.devices.attention import attend_explicitly

        device.attention = attend_explicitly
    return device


def _check_graph(name: str, number_format: str) -> None:
    if name != "cuda":
        raise OptionError(
            f"`cuda_graph` is for `device` cuda only, and this is {name}", remedy="leave it out"
        )
    if number_format == "fp16":
        raise OptionError(
            "`cuda_graph` does not work with `precision` fp16, whose loss scale changes on the "
            "host",
            remedy="use bf16 or fp32, or leave it out",
        )


def _open_usual(
    name: str, number_format: str, local_rank: int, lists: OpLists | None
) -> CudaDevice | CpuDevice:
    """Open a device that torch supports itself."""
    if name == "cuda":
        from dino.devices.cuda import CudaDevice

        return CudaDevice(number_format, local_rank, lists)
    from dino.devices.cpu import CpuDevice

    return CpuDevice(number_format, lists)


def _read_lists(precision: PrecisionConfig) -> OpLists:
    from dino.devices.op_lists import read_op_lists

    lists = read_op_lists(precision)
    for line in lists.describe() if precision.hmp_verbose else ():
        logger.info("%s", line)
    return lists


def _refuse_foreign(compiled: IpuConfig | None, name: str) -> None:
    defaults, values = vars(IpuConfig()), vars(compiled or IpuConfig())
    foreign = sorted(setting for setting in defaults if values[setting] != defaults[setting])
    if foreign:
        raise OptionError(
            f"`{foreign[0]}` is for `device` ipu only, and this is {name}", remedy="leave it out"
        )


def _open_whole(
    number_format: str, compiled: IpuConfig | None, synthetic: bool, compiles: bool | None
) -> IpuDevice:
    """Open the device that compiles the whole step."""
    from dino.devices.ipu.device import IpuDevice

    # Evaluations ask for fp32.
    number_format = "float32" if number_format == "fp32" else number_format
    device = IpuDevice(number_format, compiled, synthetic=synthetic)
    device.compiles = bool(compiles)
    return device
