"""Everything that knows which chip it runs on; nothing outside this folder does.

Importing it imports neither torch nor a device: the doctor asks `hpu.software` and `hpu.mode` where torch is broken.
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from dino.devices.hpu.software import is_bridge_installed
from dino.errors import OptionError
from dino.flags import CompiledFlags, DeviceFlags, PrecisionFlags

if TYPE_CHECKING:
    from dino.devices.base import Device
    from dino.devices.ipu import IpuDevice
    from dino.devices.op_lists import OpLists

logger = logging.getLogger(__name__)


def choose_device(asked: str | None) -> str:
    """The device's name: as asked, else hpu where the bridge is installed, else cuda where available, else cpu."""
    if asked:
        return asked
    if is_bridge_installed():
        return "hpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def open_device(
    flags: DeviceFlags,
    *,
    local_rank: int = 0,
    precision: PrecisionFlags | None = None,
    compiled: CompiledFlags | None = None,
    explicit: frozenset[str] = frozenset(),
    synthetic: bool = False,
    output_dir: str | None = None,
) -> Device:
    """Open the device of this process; without `precision` it computes in fp32.

    Args:
        flags: Which device.
        local_rank: Of this process on its host.
        precision: In which number format training computes.
        compiled: How a step is compiled, for devices that compile all of it.
        explicit: Names of the flags that the user set.
        synthetic: No images are read, where the device can make them up itself.
        output_dir: Of a training run: a device with several execution modes keeps that of the checkpoint there.

    Raises:
        DeviceError: The device, or the number format on it, is not available here.
        OptionError: Flags that contradict each other.
    """
    from dino.devices.precision import resolve_precision

    name = choose_device(flags.device)
    number_format = resolve_precision(precision, explicit, name) if precision else "fp32"
    lists = _read_lists(precision) if precision and number_format == "ops" else None
    compiles = precision.compile if precision else None
    if name == "ipu":
        return _open_whole(number_format, compiled, explicit, synthetic, compiles)
    _refuse_foreign(explicit, name)
    if name == "hpu":
        from dino.checkpoint import read_mode
        from dino.devices.hpu.device import HpuDevice

        return HpuDevice(
            number_format,
            lists,
            lazy_mode=flags.lazy_mode,
            compiles=compiles,
            kept=read_mode(output_dir) if output_dir else None,
            trains=precision is not None,
            local_rank=local_rank,
            output_dir=output_dir,
        )
    device: Device
    if name == "cuda":
        from dino.devices.cuda import CudaDevice

        device = CudaDevice(number_format, local_rank, lists)
    else:
        from dino.devices.cpu import CpuDevice

        device = CpuDevice(number_format, lists)
    device.compiles = bool(compiles)
    return device


def _read_lists(precision: PrecisionFlags) -> OpLists:
    from dino.devices.op_lists import read_op_lists

    lists = read_op_lists(precision)
    for line in lists.describe() if precision.hmp_verbose else ():
        logger.info("%s", line)
    return lists


def _refuse_foreign(explicit: frozenset[str], name: str) -> None:
    declared = {field.name: field.metadata["spec"] for field in dataclasses.fields(CompiledFlags)}
    foreign = sorted(explicit & declared.keys())
    if foreign:
        spelled = declared[foreign[0]].spelling or f"--{foreign[0]}"
        raise OptionError(f"{spelled} is for --device ipu only, and this is {name}; leave it out")


def _open_whole(
    number_format: str, compiled: CompiledFlags | None, explicit: frozenset[str], synthetic: bool, compiles: bool | None
) -> IpuDevice:
    """The device that compiles the whole step, and so cannot do a few things between two steps."""
    if "eval_knn_every" in explicit:
        raise OptionError("--eval_knn_every is not there on --device ipu; score the checkpoints with eval_knn.py")
    if "recompute" in explicit:
        raise OptionError("--recompute is not there on --device ipu; spread the blocks over more IPUs with --pipeline")
    from dino.devices.ipu import IpuDevice

    number_format = "float32" if number_format == "fp32" else number_format  # an evaluation's
    device = IpuDevice(number_format, compiled, clips="clip_grad" in explicit, synthetic=synthetic)
    device.compiles = bool(compiles)
    return device
