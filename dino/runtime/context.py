"""One run of a command: its device, its processes, its log lines; all closed on the way out."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import cast

from dino.devices import open_device
from dino.devices.base import Device
from dino.devices.config import DeviceConfig, IpuConfig, PrecisionConfig
from dino.errors import DeviceError, OptionError
from dino.runtime.config import LaunchConfig
from dino.runtime.distributed import Processes, export_launch, read_launch
from dino.runtime.failures import FailureWatch

logger = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the work needs to know about where it runs."""

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
    phrase: Callable[[str], str] = str,
) -> Iterator[Run]:
    """Open the device (`dino.devices.open_device`) and meet the other processes; close all at the end.

    `phrase` rewrites what this process says, before it ends, about another one's failure.

    Raises:
        DinoError: The device or the meeting point is not usable.
    """
    place = read_launch(os.environ)
    export_launch(place, launch.dist_url)
    opened = open_device(
        device,
        local_rank=place.local_rank,
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
        place.world_size,
        "es" * (place.world_size > 1),
    )
    if opened.caution:
        logger.info("%s", opened.caution)
    processes = Processes(place, opened.collective_backend, launch.dist_url)
    watch = FailureWatch(processes, phrase)
    try:
        _check_mode(opened, processes)
        yield Run(device=opened, processes=processes)
    except BaseException as error:
        explained = opened.explain(error) if isinstance(error, RuntimeError) else None
        watch.announce(DeviceError(explained) if explained else error)
        if explained:
            raise DeviceError(explained) from error
        raise
    finally:
        watch.close()
        processes.close()


def _check_mode(device: Device, processes: Processes) -> None:
    """All processes run in one execution mode: each decided for itself, by its host's variables and files."""
    here = device.mode or "none"
    first = processes.read_from_first("mode", here)
    if here != first:
        raise DeviceError(
            f"this process runs in {here} mode and rank 0 in {first} mode",
            remedy="give all the same variables and an `output_dir` that all hosts share, or say `lazy_mode`",
        )


class StopRequest:
    """Remembers that a signal came, so that the loop can save and leave; a second Ctrl-C ends it at once."""

    def __init__(self, signals: Sequence[signal.Signals] = STOP_SIGNALS) -> None:
        """No signal yet; outside of the main thread none can be listened to."""
        self.signals, self.signal = signals, cast("signal.Signals | None", None)

    @contextlib.contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Catch the signals inside the block and restore their handlers after it."""
        hears = threading.current_thread() is threading.main_thread()
        before = {name: signal.signal(name, self._remember) for name in self.signals if hears}
        try:
            yield self
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def __bool__(self) -> bool:
        """Whether one came."""
        return self.signal is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)


@contextlib.contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the block as an exception, so that what it made on disk is taken away."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def make_output_folder(path: str, flag: str = "`output_dir`") -> Path:
    """Make the folder that `flag` names, and prove that it can be written to.

    Raises:
        OptionError: It cannot.
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
