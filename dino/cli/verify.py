"""`dino verify`: test a device step by step; exit code 1 if a step failed, 130 after Ctrl-C."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import spell
from dino.config import OutputConfig, setting
from dino.devices.config import DeviceConfig
from dino.devices.hpu.mode import choose_mode
from dino.devices.hpu.software import find_version
from dino.doctor.examine import choose
from dino.errors import CheckFailed, OptionError
from dino.files import atomic_write
from dino.verify.base import FAIL, FULL, LAZY, MODES, QUICK, Setting, StepReport
from dino.verify.conclusion import conclude
from dino.verify.page import write_page
from dino.verify.plan import STEPS, verify
from dino.verify.report import build_report

ABOUT = Help(
    example="dino verify --device hpu --output_dir report",
)


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig(OutputConfig):
    """Which steps to run, at which size and with which time limits."""

    size: str | None = setting(None, choices=("quick", "full"))
    only: tuple[int, ...] | None = setting(None, least=1, most=8)
    patience: float = setting(1.0, least=0.1, most=100)


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Find out which modes of a device compute correct numbers, and how fast.

    Runs eight steps, each in its own processes: facts, product of matrices, golden numbers,
    operator replay, alignment with the CPU, short training, speed, more than one card. Writes
    OUTPUT_DIR/verify_report.json, to send, and verify_report.txt, to read. The exit code is 1 if a
    step failed. With --lazy_mode, the other modes of hpu are left out.
    """

    device: DeviceConfig = DeviceConfig()
    verify: EvidenceConfig = EvidenceConfig()


REPORT, PAGE = "verify_report.json", "verify_report.txt"
SIZES = dict.fromkeys(MODES, FULL) | {"cpu": QUICK}  # without --size


class Progress:
    """Prints a line per variant, with its current activity on a terminal, and a line per step."""

    def __init__(self) -> None:
        """Print nothing yet."""
        self.line, self.live = "", sys.stdout.isatty()

    def begin(self, number: int, title: str, label: str) -> None:
        """See `plan.Show`."""
        self.line = f"{number}/{len(STEPS)} {title}: {label}"
        self._write(self.line if self.live else f"{self.line}\n")

    def say(self, text: str) -> None:
        """See `plan.Show`."""
        if self.live:
            self._write(f"{self.line} ({text})")

    def end(self, report: StepReport) -> None:
        """See `plan.Show`."""
        seen = report.worst.summary if report.worst else report.reason
        self._write(
            f"{report.number}/{len(STEPS)} {report.title}: {report.status.upper()} - "
            f"{spell(seen)}\n"
        )

    def _write(self, text: str) -> None:
        sys.stdout.write(
            f"\r\033[K{text[:110] if not text.endswith(chr(10)) else text}" if self.live else text
        )
        sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    """Run the steps; write both files after every step, so that no result is lost.

    Raises:
        CheckFailed: A step failed.
        OptionError: The files cannot be written, or the device has no modes to test.
        SystemExit: The user stopped the run; the files are written.
    """
    config = parse(VerifyConfig, argv, ABOUT)
    device, flags = config.device.device or choose(os.environ)[0], config.verify
    modes = choose_modes(device, config.device.lazy_mode)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="dino_verify_", ignore_cleanup_errors=True) as folder:
        setting = Setting(
            device=device, size=flags.size or SIZES[device], modes=modes, folder=Path(folder)
        )
        reports, stopped = run(setting, flags)
    if stopped:
        raise SystemExit(128 + signal.SIGINT)
    failed = [report for report in reports if report.status == FAIL]
    if failed:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise CheckFailed(
            f"step {failed[0].number}, {failed[0].title}, failed{more}",
            remedy=f"see {REPORT} for the details",
        )


def choose_modes(device: str, lazy_mode: bool | None) -> tuple[str, ...]:
    """Return the modes to test, the default mode of a run first.

    Raises:
        OptionError: verify does not support the device.
    """
    if device not in MODES:
        raise OptionError(
            f"verify does not support --device {device}",
            remedy=f"run python -m dino.devices.align --device {device}",
        )
    modes = MODES[device]
    if LAZY in modes:
        first = choose_mode(torch_version=find_version("torch")).name
        modes = tuple(sorted(modes, key=lambda mode: mode != first))
    chosen = tuple(mode for mode in modes if lazy_mode is None or (mode == LAZY) is lazy_mode)
    return chosen or modes  # a device without lazy mode ignores the flag


def run(setting: Setting, flags: EvidenceConfig) -> tuple[list[StepReport], bool]:
    """Run all steps; return their reports, and whether the user stopped the run."""
    folder, began = Path(flags.output_dir), time.monotonic()
    with contextlib.suppress(OSError):  # `write` below reports a folder that cannot be made
        folder.mkdir(parents=True, exist_ok=True)
    chosen = {
        name for number, name in enumerate(STEPS, 1) if not flags.only or number in flags.only
    }
    reports: list[StepReport] = []
    # Fails at once if the folder cannot be written to.
    write(folder, reports, setting, seconds=0.0, stopped=True)
    for report in verify(setting, chosen=chosen, patience=flags.patience, show=Progress()):
        reports.append(report)
        stopped = any(each.reason.startswith("stopped") for each in reports)
        unfinished = stopped or len(reports) < len(STEPS)
        page = write(folder, reports, setting, seconds=time.monotonic() - began, stopped=unfinished)
    sys.stdout.write(f"\n{page}\n{folder / REPORT}\n{folder / PAGE}\n")
    return reports, stopped


def write(
    folder: Path, reports: Sequence[StepReport], setting: Setting, *, seconds: float, stopped: bool
) -> str:
    """Write both files, each atomically; return the page.

    Raises:
        OptionError: The files cannot be written.
    """
    report = build_report(
        reports, setting, conclude(reports, setting), seconds=seconds, stopped=stopped
    )
    page = write_page(report, REPORT)
    for name, text in ((REPORT, json.dumps(report, indent=1) + "\n"), (PAGE, page)):
        with atomic_write(folder / name, "--output_dir") as temporary:
            temporary.write_text(spell(text), encoding="utf-8")
    return spell(page)
