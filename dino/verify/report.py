"""Builds the JSON report: all findings, without names of the host, the user or folders."""

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

SCHEMA = 1  # raise it whenever readers of the report would have to change
NAMES = (
    "schema",
    "status",
    "name",
    "device",
    "size",
    "mode",
    "precision",
    "number",
)  # values from this project, never names of a machine


def build_report(
    reports: Sequence[StepReport],
    setting: Setting,
    conclusion: Conclusion,
    *,
    seconds: float,
    stopped: bool,
    clean: Callable[[Any], Any] | None = None,
) -> dict[str, Any]:
    """Return the report as plain JSON values.

    Args:
        reports: Reports of the steps, at most eight.
        setting: What was tested.
        conclusion: The conclusion.
        seconds: How long the run took.
        stopped: Whether the user stopped the run early.
        clean: Removes names from texts; by default the names of this machine.
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
    """Convert to plain JSON values; numbers that are not finite become null at any depth."""
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
