"""The JSON report: everything that was found, without a name of the host, the user or a folder in it."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from typing import Any

from dino.verify.base import Finding, Setting, StepReport, find_worst
from dino.verify.conclusion import Conclusion
from dino.verify.scrub import build_cleaner

SCHEMA = 1  # raise it whenever a reader of the report would have to change
NAMES = (
    "schema",
    "status",
    "name",
    "device",
    "size",
    "mode",
    "precision",
    "number",
)  # ours, and never a machine's


def build_report(
    reports: Sequence[StepReport],
    setting: Setting,
    conclusion: Conclusion,
    *,
    seconds: float,
    stopped: bool,
    clean: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """Everything as plain values of JSON.

    Args:
        reports: Of the steps, all eight or fewer.
        setting: What was looked at.
        conclusion: What follows.
        seconds: That it took.
        stopped: Whether the user ended it before its end.
        clean: Takes names out of texts; by default those of this machine.
    """
    clean = clean or build_cleaner()
    return {
        "schema": SCHEMA,
        "made": datetime.date.today().isoformat(),
        "package": _find_version(),
        "device": setting.device,
        "size": setting.size,
        "modes": list(setting.modes),
        "seconds": round(seconds, 1),
        "stopped": stopped,
        "status": find_worst(report.status for report in reports),
        "steps": [_describe_step(report, clean) for report in reports],
        "conclusion": {
            name: value if name in NAMES else make_plain(clean(value))
            for name, value in asdict(conclusion).items()
        },
    }


def _describe_step(report: StepReport, clean: Callable[[Any], Any]) -> dict[str, Any]:
    worst = report.worst
    return {
        "number": report.number,
        "name": report.name,
        "title": report.title,
        "status": report.status,
        "summary": clean(worst.summary if worst else report.reason),
        "remedy": clean(worst.remedy) if worst else None,
        "seconds": round(report.seconds, 1),
        "parts": [_describe_part(part, clean) for part in report.findings],
    }


def _describe_part(part: Finding, clean: Callable[[Any], Any]) -> dict[str, Any]:
    return {
        "name": part.variant.label,
        "device": part.variant.device,
        "mode": part.variant.mode if part.variant.device else None,
        "precision": part.variant.precision if part.variant.device else None,
        "status": part.status,
        "summary": clean(part.summary),
        "remedy": clean(part.remedy),
        "seconds": round(part.seconds, 1),
        "figures": make_plain(clean(part.figures)),
        "log": clean(part.log).splitlines(),
    }


def make_plain(value: Any) -> Any:
    """As JSON has it: what is not finite becomes null, at any depth."""
    if isinstance(value, Mapping):
        return {str(name): make_plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [make_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _find_version() -> str | None:
    try:
        return metadata.version("dino-reference")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return None
