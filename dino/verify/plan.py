"""Which steps there are, how long each may take, and the loop over them."""

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
LIMITS: Mapping[
    str, Mapping[str, float]
] = {  # seconds, by size and step; ten minutes and four together
    "full": dict(zip(STEPS, (30.0, 30.0, 60.0, 90.0, 90.0, 110.0, 160.0, 30.0), strict=True)),
    "quick": dict(zip(STEPS, (15.0, 15.0, 45.0, 30.0, 60.0, 30.0, 20.0, 25.0), strict=True)),
}
PART = 0.5  # of the time that a step has left, which one of several variants may take
LEAST = 1.0  # seconds with which a variant is begun

REMEDIES = {
    "memory": "look for another process that holds the device's memory; else send the report",
    "hang": "it hangs: send the report, which names what it did",
    "time": "run it again with --patience 4, if this machine is only slow; if it ends no sooner, send the report",
    "killed": "look into the system's log (dmesg) for why it was killed; then send the report",
    "refused": "run `python -m dino.doctor`, and do what it says",
    "error": "send the report: the end of its output is in it",
}
NO_COMPILER = "working c++ compiler"


class Show(Protocol):
    """Who tells the user how far it is."""

    def begin(self, number: int, title: str, label: str) -> None:
        """A variant of a step begins."""

    def say(self, text: str) -> None:
        """It says what it is doing."""

    def end(self, report: StepReport) -> None:
        """A step has ended."""


class Stopped(Exception):  # noqa: N818 - nothing is wrong
    """The user has stopped it; holds what the step under way had found."""

    def __init__(self, report: StepReport) -> None:
        """Keep the report of the step that was not finished."""
        super().__init__()
        self.report = report


def verify(
    setting: Setting, *, chosen: Collection[str], patience: float, show: Show
) -> Iterator[StepReport]:
    """Run the steps one after the other; none of them can keep the others from running.

    After Ctrl-C the step under way is given with what it had found, and the others are not run.

    Args:
        setting: What to look at.
        chosen: Names of steps to run; the others are given as not run.
        patience: Factor on all limits.
        show: Is told how far it is.

    Yields:
        What came of each step, in order.
    """
    stopped = False
    with Runner(setting, show.say) as runner:
        for number, name in enumerate(STEPS, start=1):
            step: Any = importlib.import_module(f"dino.verify.steps.{name}")
            if stopped or name not in chosen:
                reason = "stopped by Ctrl-C" if stopped else "not asked for"
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
        Stopped: By Ctrl-C.
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
    """The step's findings about what ended well, and those about what did not, in the order in which they ran."""
    good = [result for result in results if not result.kind]
    try:
        judged = step.judge(good, setting)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:  # figures nobody expected
        told = f"its figures are not understood ({type(error).__name__}: {error})"
        judged = [accept(result, FAIL, told, REMEDIES["error"]) for result in good]
    found = {finding.variant.label: finding for finding in judged}
    tell: Callable[[Finding, Setting], Finding] = getattr(
        step, "tell_failure", lambda finding, _: finding
    )
    found |= {
        result.variant.label: tell(explain(result), setting) for result in results if result.kind
    }
    return [found[result.variant.label] for result in results if result.variant.label in found]


def explain(result: Result) -> Finding:
    """A finding about a variant that did not end well."""
    reason = _find_excuse(result)
    status = FAIL if reason is None else NOT_RUN
    return Finding(
        variant=result.variant,
        status=status,
        summary=reason
        or (f"out of memory: {result.error}" if result.kind == "memory" else result.error),
        remedy=REMEDIES.get(result.kind) if status == FAIL else None,
        figures={"kind": result.kind, "last": result.last},
        log=result.log if status == FAIL else "",
        seconds=result.seconds,
    )


def _find_excuse(result: Result) -> str | None:
    """Why it is no failure of this machine that a variant did not run; None if it is one."""
    if result.kind == "not run":
        return result.error
    version = find_version("torch")
    if result.variant.mode == LAZY and result.kind == "refused" and not is_vendor_torch(version):
        return f"torch {version} is not the vendor's build, which alone has lazy mode"
    if NO_COMPILER in result.error.lower():
        return "torch.compile wants a C++ compiler here, and there is none (install g++)"
    return None
