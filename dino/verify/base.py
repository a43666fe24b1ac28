"""The interface of the steps of verify: variants go to child processes, findings come back.

A step is a module of `dino.verify.steps`. Its `list_variants` says what to run, its `run` runs one
variant in a child process and returns figures, and its `judge` turns all results into findings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dino.errors import DinoError

if TYPE_CHECKING:
    from dino.runtime.context import Run

PASS, SLOW, FAIL, NOT_RUN = "pass", "slow", "fail", "not run"
# A step has the status of its worst part; it was not run if no part was.
WORST_FIRST = (FAIL, SLOW, PASS, NOT_RUN)

EAGER, COMPILED, LAZY = "eager", "compiled", "lazy"
MODES: Mapping[str, tuple[str, ...]] = {  # by device
    "hpu": (LAZY, COMPILED, EAGER),
    "cuda": (EAGER, COMPILED),
    "cpu": (EAGER, COMPILED),
}
# Always set explicitly, since a run's default depends on the software.
MODE_SETTINGS: Mapping[str, Mapping[str, Any]] = {
    LAZY: {"lazy_mode": True},
    COMPILED: {"lazy_mode": False, "compile": True},
    EAGER: {"lazy_mode": False},
}
FORMATS = ("fp32", "bf16", "ops")

QUICK, FULL = "quick", "full"
THREADS = 8  # for the CPU's own small steps; more threads would wait for each other


class NotRunError(DinoError):
    """Something that a variant needs is missing, which is not a failure; the text names it."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one call of verify tests.

    Attributes:
        device: The device under test.
        size: QUICK or FULL.
        modes: Modes of the device, the default mode of a run first.
        folder: Temporary folder of this call, in which processes pass on data; removed at the end.
    """

    device: str
    size: str
    modes: tuple[str, ...]
    folder: Path

    @property
    def is_quick(self) -> bool:
        """Whether small networks and few steps are enough."""
        return self.size == QUICK

    @property
    def quickest_first(self) -> tuple[str, ...]:
        """The modes, compiled last: it gets the time that the others leave."""
        return tuple(sorted(self.modes, key=lambda mode: mode == COMPILED))

    def leaves_out(self, mode: str, precision: str) -> bool:
        """Whether to skip a format: in quick on the CPU, compiling takes half a minute for each."""
        return (
            self.is_quick and self.device == "cpu" and mode == COMPILED and precision != FORMATS[0]
        )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing that runs in a child process.

    Attributes:
        label: Its name in the report; unique within its step.
        device: Device to open; None for no device.
        mode: Mode of the device.
        precision: Number format of the device.
        options: What else the step needs to know.
        environment: Additional variables of the process.
        processes: How many processes run it together, each with a card.
    """

    label: str
    device: str | None = None
    mode: str = EAGER
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1

    def settings(self) -> dict[str, Any]:
        """Return the settings of a run with this device, mode and number format."""
        return {
            "device": self.device or "cpu",
            "precision": self.precision,
            **MODE_SETTINGS[self.mode],
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a variant ended.

    Attributes:
        variant: The variant that ran.
        figures: What `run` returned; None if it did not finish.
        error: One line with the reason, if it did not end well.
        kind: How it ended: "" for well, "not run" (`NotRunError`), "refused" (by the device, or an
            impossible value: one explained line), "memory", "error" (any other exception), "killed"
            (by a signal), "hang" (silent for too long), "time" (the limit).
        last: The last activity it reported.
        log: The end of its output, if it did not end well.
        seconds: How long it took.
    """

    variant: Variant
    figures: Mapping[str, Any] | None = None
    error: str = ""
    kind: str = ""
    last: str = ""
    log: str = ""
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What the report says about one variant.

    Attributes:
        variant: The variant.
        status: PASS, SLOW, FAIL or NOT_RUN.
        summary: One line.
        remedy: What to do next; None if there is nothing to do.
        figures: Figures for programs.
        log: The end of its output, if it failed.
        seconds: How long it took.
    """

    variant: Variant
    status: str
    summary: str
    remedy: str | None = None
    figures: Mapping[str, Any] = field(default_factory=dict)
    log: str = ""
    seconds: float = 0.0


class Say(Protocol):
    """See `Bench`."""

    def __call__(self, text: str, *, within: float | None = None) -> None:
        """Report the current activity."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What `run` works with.

    Attributes:
        run: The opened device and this process's rank; None for a variant without a device.
        setting: Setting of the call.
        say: Reports the current activity in a few words; with `within`, the process counts as
            hanging if it reports nothing else for that many seconds.
        limit: Time limit of this process in seconds.
    """

    run: Run | None
    setting: Setting
    say: Say
    limit: float = math.inf

    @property
    def opened(self) -> Run:
        """The run of a variant that has a device."""
        assert self.run is not None
        return self.run


class Step(Protocol):
    """The functions of each module of `dino.verify.steps`."""

    TITLE: str

    def list_variants(self, setting: Setting) -> Sequence[Variant]:
        """Return the variants in the order in which they run."""

    def run(self, variant: Variant, bench: Bench) -> Mapping[str, Any]:
        """Run a variant in its own process; return plain JSON values only."""

    def follow(self, result: Result, setting: Setting) -> Sequence[Variant]:
        """Return variants to run because of a result; a module may lack this function."""

    def judge(self, results: Sequence[Result], setting: Setting) -> list[Finding]:
        """Return a finding for each result; all of them ended well."""

    def tell_failure(self, finding: Finding, setting: Setting) -> Finding:
        """Add details to the finding of a failed variant; a module may lack this function."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """The outcome of one step.

    Attributes:
        number: Position in the order of the steps, from 1.
        name: Name of its module.
        title: Title of the step.
        findings: Findings in the order in which the variants ran.
        reason: Why it was not run, if it was not.
        seconds: How long it took.
    """

    number: int
    name: str
    title: str
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """Status of the worst part."""
        return find_worst(finding.status for finding in self.findings)

    @property
    def worst(self) -> Finding | None:
        """The finding that stands for the step; None without findings.

        It is the first of the worst, or the last if all is well, since references run first.
        """
        worst = [finding for finding in self.findings if finding.status == self.status]
        if not worst:
            return None
        return worst[0] if self.status in (FAIL, SLOW) else worst[-1]


def accept(
    result: Result, status: str, summary: str, remedy: str | None = None, **more: Any
) -> Finding:
    """Build a finding about a variant that ended well."""
    return Finding(
        variant=result.variant,
        status=status,
        summary=summary,
        remedy=remedy,
        figures={**(result.figures or {}), **more},
        seconds=result.seconds,
    )


def find_worst(statuses: Iterable[str]) -> str:
    """Return the worst of some statuses; NOT_RUN if there are none."""
    present = set(statuses)
    return next((status for status in WORST_FIRST if status in present), NOT_RUN)
