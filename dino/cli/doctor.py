"""`dino doctor`: report whether a device can run here; the exit code is 1 if it cannot."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import spell
from dino.config import ReportConfig
from dino.devices.config import DeviceConfig, PrecisionConfig
from dino.doctor.examine import Case, choose, examine
from dino.doctor.report import Fact, Problem
from dino.errors import CheckFailed
from dino.runtime.metrics import write_result

ABOUT = Help(
    example="dino doctor --device hpu",
)


@dataclass(frozen=True, kw_only=True)
class ExaminationConfig:
    """How far the examination goes."""

    probe: bool = True


@dataclass(frozen=True, kw_only=True)
class DoctorConfig:
    """Report what this machine has and what keeps a device from running; takes a run's flags."""

    device: DeviceConfig = DeviceConfig()
    precision: PrecisionConfig = PrecisionConfig()
    examination: ExaminationConfig = ExaminationConfig()
    report: ReportConfig = ReportConfig()


def main(argv: Sequence[str] | None = None) -> None:
    """Examine the given device, or the one a command would choose, and print the report.

    Raises:
        CheckFailed: The device cannot run here.
        OptionError: A flag is wrong, or the report cannot be written.
    """
    config = parse(DoctorConfig, argv, ABOUT)
    flags = config.device
    device, doubt = (flags.device, None) if flags.device else choose(os.environ)
    case = Case(
        os.environ,
        flags.lazy_mode,
        config.precision.compile,
        "try" if config.examination.probe else "never",
    )
    report = examine(device, case)
    report.facts.insert(
        0, Fact("device", f"{device} ({'as asked' if flags.device else 'chosen automatically'})")
    )
    if doubt:
        cause = f"the device that a command would choose could not be determined: {doubt}"
        report.problems.insert(0, Problem(cause, "name one with --device", blocking=False))
    if config.report.json != "-":
        sys.stdout.write(spell(report.format()))
    write_result(config.report.json, json.loads(spell(json.dumps(report.as_dict()))))
    sys.stdout.flush()
    if report.blocking:
        more = (
            f" (and {len(report.blocking) - 1} more, see above)" if len(report.blocking) > 1 else ""
        )
        raise CheckFailed(f"{device} cannot run here: {report.blocking[0].cause}{more}")
