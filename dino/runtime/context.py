"""One run of a command: its device and its processes, both closed at the end."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.devices import open_device
from dino.devices.base import Device
from dino.devices.config import DeviceConfig, IpuConfig, PrecisionConfig
from dino.errors import DeviceError, OptionError
from dino.runtime.agreement import check_command
from dino.runtime.config import LaunchConfig
from dino.runtime.distributed import Processes
from dino.runtime.failures import FailureWatch
from dino.runtime.launch import export_launch, read_launch

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Where the work runs: its device and its processes."""

    device: Device
    processes: Processes


@contextlib.contextmanager
def open_run(
    device: DeviceConfig,
    launch: LaunchConfig,
    *,
    precision: PrecisionConfig | None = None,
    compiled: IpuConfig | None = None,
    synthetic: bool = False,
    output_dir: str | None = None,
    settings: Mapping[str, Any] | None = None,
    phrase: Callable[[str], str] = str,
) -> Iterator[Run]:
    """Open the device (`dino.devices.open_device`), join the other processes; close all at the end.

    `settings` are compared over processes. `phrase` rewrites the message that this process prints
    if another process failed.

    Raises:
        DinoError: The device or the meeting point is not usable, or processes differ.
    """
    position = read_launch(os.environ)
    export_launch(position, launch.dist_url)
    opened = open_device(
        device,
        local_rank=position.local_rank,
        precision=precision,
        compiled=compiled,
        synthetic=synthetic,
        output_dir=output_dir,
    )
    chosen = "as asked" if device.device else "chosen automatically, `device` changes it"
    logger.info(
        "device: %s (%s), %d process%s",
        opened.describe(),
        chosen,
        position.world_size,
        "es" * (position.world_size > 1),
    )
    if opened.caution:
        logger.info("%s", opened.caution)
    processes = Processes(position, opened.collective_backend, launch.dist_url)
    watch = FailureWatch(processes, phrase, launch.hang_timeout)
    try:
        _check_mode(opened, processes)
        check_command(processes, settings or {})
        yield Run(device=opened, processes=processes)
        processes.wait_for_all("done")  # rank 0 may hold the store that the others still read
        watch.leave()
    except BaseException as error:
        explained = opened.explain(error) if isinstance(error, RuntimeError) else None
        watch.announce(error, DeviceError(explained) if explained else error)
        if explained:
            raise DeviceError(explained) from error
        raise
    finally:
        watch.close()
        processes.close()


def _check_mode(device: Device, processes: Processes) -> None:
    """Check that all processes chose the same mode; each decided from its host's environment."""
    here = device.mode or "none"
    first = processes.read_from_first("mode", here)
    if here != first:
        raise DeviceError(
            f"this process runs in {here} mode and rank 0 in {first} mode",
            remedy="give all processes the same variables and a shared `output_dir`, "
            "or set `lazy_mode`",
        )


def make_output_folder(path: str, flag: str = "`output_dir`") -> Path:
    """Make the folder that `flag` names and check that it is writable.

    Raises:
        OptionError: The folder cannot be made or written to.
    """
    folder, probe = Path(path), Path(path) / f".writable.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise OptionError(
            f"{flag} {path} cannot be written to ({error})", remedy="name another folder"
        ) from error
    return folder
