"""The steps, their time limits, and the loop that runs them."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

from dino.devices.hpu.software import find_version, is_vendor_torch
from dino.verify.base import (
    FAIL,
    LAZY,
    NOT_RUN,
    Finding,
    Result,
    Setting,
    StepReport,
    Variant,
    accept,
)
from dino.verify.runner import Runner

STEPS = ("facts", "product", "golden", "operators", "alignment", "training", "speed", "cards")
# Seconds by size and step; ten minutes and four minutes in total.
LIMITS: Mapping[str, Mapping[str, float]] = {
    "full": dict(zip(STEPS, (30.0, 30.0, 60.0, 90.0, 90.0, 110.0, 160.0, 30.0), strict=True)),
    "quick": dict(zip(STEPS, (15.0, 15.0, 45.0, 30.0, 60.0, 30.0, 20.0, 25.0), strict=True)),
}
PART = 0.5  # share of a step's remaining time that a variant may take if others follow
LEAST = 1.0  # seconds that must remain to start a variant

REMEDIES = {
    "memory": "look for another process that holds the device's memory; else send the report",
    "hang": "send the report: it names the activity that hangs",
    "time": (
        "if this machine is only slow, run it again with --patience 4; if that does not help, send "
        "the report"
    ),
    "killed": "look in the system log (dmesg) for the reason; then send the report",
    "refused": "run `python -m dino.doctor` and follow its advice",
    "error": "send the report: it holds the end of the output",
}
NO_COMPILER = "working c++ compiler"
UNEXPECTED_FIGURES = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Show(Protocol):
    """Reports progress to the user."""

    def begin(self, number: int, title: str, label: str) -> None:
        """Report that a variant of a step starts."""

    def say(self, text: str) -> None:
        """Report the current activity of the variant."""

    def end(self, report: StepReport) -> None:
        """Report that a step has ended."""


class Stopped(Exception):  # noqa: N818 - not an error
    """The user stopped the run; holds the findings of the current step."""

    def __init__(self, report: StepReport) -> None:
        """Keep the report of the unfinished step."""
        super().__init__()
        self.report = report


def verify(
    setting: Setting, *, chosen: Collection[str], patience: float, show: Show
) -> Iterator[StepReport]:
    """Run the steps one after another; no step can keep the others from running.

    After Ctrl-C the current step is yielded with its findings so far, and the others are not run.

    Args:
        setting: What to test.
        chosen: Names of steps to run; the others are yielded as not run.
        patience: Factor on all limits.
        show: Reports progress.

    Yields:
        The report of each step, in order.
    """
    stopped = False
    with Runner(setting, show.say) as runner:
        for number, name in enumerate(STEPS, start=1):
            step: Any = importlib.import_module(f"dino.verify.steps.{name}")
            if stopped or name not in chosen:
                reason = "stopped by Ctrl-C" if stopped else "not requested"
                yield StepReport(number=number, name=name, title=step.TITLE, reason=reason)
                continue
            try:
                report = run_step(runner, number, step, LIMITS[setting.size][name] * patience, show)
            except Stopped as error:
                stopped, report = True, error.report
            show.end(report)
            yield report


def run_step(runner: Runner, number: int, step: Any, limit: float, show: Show) -> StepReport:
    """Run the variants of a step within `limit` seconds.

    Raises:
        Stopped: The user pressed Ctrl-C.
    """
    name, began = step.__name__.rpartition(".")[2], time.monotonic()
    results: dict[str, Result] = {}
    waiting = list(step.list_variants(runner.setting))

    def conclude() -> StepReport:
        findings = judge(step, list(results.values()), runner.setting)
        reason = "" if findings else "nothing to run"
        return StepReport(
            number=number,
            name=name,
            title=step.TITLE,
            findings=tuple(findings),
            reason=reason,
            seconds=time.monotonic() - began,
        )

    try:
        while waiting:
            variant = waiting.pop(0)
            show.begin(number, step.TITLE, variant.label)
            left = limit - (time.monotonic() - began) if runner.is_warm else limit
            result = _run(runner, name, variant, left * (PART if waiting else 1.0), limit)
            results[variant.label] = result
            follow = getattr(step, "follow", None)
            waiting = [*(follow(result, runner.setting) if follow else ()), *waiting]
            if not runner.is_warm:
                runner.is_warm, began = True, time.monotonic() - result.seconds
    except KeyboardInterrupt:
        raise Stopped(conclude()) from None
    return conclude()


def _run(runner: Runner, name: str, variant: Variant, left: float, limit: float) -> Result:
    if left < LEAST:
        return Result(
            variant=variant, kind="not run", error=f"no time was left of this step's {limit:g} s"
        )
    return runner.run(name, variant, left)


def judge(step: Any, results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Return findings about all results, in the order in which the variants ran."""
    good = [result for result in results if not result.kind]
    try:
        judged = step.judge(good, setting)
    except UNEXPECTED_FIGURES as error:
        summary = f"its figures are not understood ({type(error).__name__}: {error})"
        judged = [accept(result, FAIL, summary, REMEDIES["error"]) for result in good]
    findings = {finding.variant.label: finding for finding in judged}
    tell: Callable[[Finding, Setting], Finding] = getattr(
        step, "tell_failure", lambda finding, _: finding
    )
    findings |= {
        result.variant.label: tell(explain(result), setting) for result in results if result.kind
    }
    labels = [result.variant.label for result in results]
    return [findings[label] for label in labels if label in findings]


def explain(result: Result) -> Finding:
    """Build a finding about a variant that did not end well."""
    reason = _find_excuse(result)
    status = FAIL if reason is None else NOT_RUN
    error = f"out of memory: {result.error}" if result.kind == "memory" else result.error
    return Finding(
        variant=result.variant,
        status=status,
        summary=reason or error,
        remedy=REMEDIES.get(result.kind) if status == FAIL else None,
        figures={"kind": result.kind, "last": result.last},
        log=result.log if status == FAIL else "",
        seconds=result.seconds,
    )


def _find_excuse(result: Result) -> str | None:
    """Return why a variant that did not run is not a failure; None if it is a failure."""
    if result.kind == "not run":
        return result.error
    version = find_version("torch")
    if result.variant.mode == LAZY and result.kind == "refused" and not is_vendor_torch(version):
        return f"torch {version} is not the vendor's build, and only that build has lazy mode"
    if NO_COMPILER in result.error.lower():
        return "torch.compile needs a C++ compiler, but none was found (install g++)"
    return None
