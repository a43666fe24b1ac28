"""What a step of verify is asked and what it answers: variants go to processes, findings come back.

A step is a module of `dino.verify.steps`. Its `list_variants` says what to run, its `run` runs one of them in a process
of its own and gives figures, and its `judge` makes findings of all that came back.
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
WORST_FIRST = (
    FAIL,
    SLOW,
    PASS,
    NOT_RUN,
)  # a step is as its worst part; it was not run if none of its parts was

EAGER, COMPILED, LAZY = "eager", "compiled", "lazy"
MODES: Mapping[str, tuple[str, ...]] = {  # of each device
    "hpu": (LAZY, COMPILED, EAGER),
    "cuda": (EAGER, COMPILED),
    "cpu": (EAGER, COMPILED),
}
MODE_SETTINGS: Mapping[
    str, Mapping[str, Any]
] = {  # always given: what a run takes by itself depends on the software
    LAZY: {"lazy_mode": True},
    COMPILED: {"lazy_mode": False, "compile": True},
    EAGER: {"lazy_mode": False},
}
FORMATS = ("fp32", "bf16", "ops")

QUICK, FULL = "quick", "full"
THREADS = (
    8  # of the CPU's own small steps; on tensors of their size more of them wait for each other
)


class NotRunError(DinoError):
    """What a variant needs is not there, and nothing is wrong with that; its text says what."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What one call of verify looks at.

    Attributes:
        device: Under test.
        size: QUICK or FULL.
        modes: Of the device, the one that a run takes by itself first.
        folder: Of this call, where one process leaves what another one reads; gone at the end.
    """

    device: str
    size: str
    modes: tuple[str, ...]
    folder: Path

    @property
    def is_quick(self) -> bool:
        """Whether small networks and few steps do."""
        return self.size == QUICK

    @property
    def quickest_first(self) -> tuple[str, ...]:
        """The modes, the one that compiles last: it gets what time the others leave."""
        return tuple(sorted(self.modes, key=lambda mode: mode == COMPILED))

    def leaves_out(self, mode: str, precision: str) -> bool:
        """In quick on the CPU a compiler takes half a minute for every number format, so one has to do."""
        return (
            self.is_quick and self.device == "cpu" and mode == COMPILED and precision != FORMATS[0]
        )


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One thing that runs in a process of its own.

    Attributes:
        label: What the report calls it; unique within its step.
        device: To open, or None for none.
        mode: Of the device.
        precision: Number format of the device.
        config: What else the step wants to know.
        environment: Variables that the process has besides.
        processes: How many of them run it together, each with a card.
    """

    label: str
    device: str | None = None
    mode: str = EAGER
    precision: str = "fp32"
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    processes: int = 1

    def settings(self) -> dict[str, Any]:
        """What a run is asked for this device, mode and number format, by setting."""
        return {
            "device": self.device or "cpu",
            "precision": self.precision,
            **MODE_SETTINGS[self.mode],
        }


@dataclass(frozen=True, kw_only=True)
class Result:
    """How a variant ended.

    Attributes:
        figures: What `run` gave; None if it did not get there.
        error: One line that says how it ended, where it did not end well.
        kind: How it did not end well: "not run" (`NotRunError`), "refused" (the device, or a value that cannot be: one
            explained line), "memory", "error" (any other exception), "killed" (by a signal), "hang" (no word for too
            long), "time" (the limit); "" if it did.
        last: What it last said it was doing.
        log: The end of what it printed, where it did not end well.
        seconds: That it took.
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
    """What the report says of one variant.

    Attributes:
        variant: It.
        status: PASS, SLOW, FAIL or NOT_RUN.
        summary: One line.
        remedy: The next thing to do about it; None where nothing is to be done.
        figures: For programs.
        log: The end of what it printed, where it failed.
        seconds: That it took.
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
        """Say it."""


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What `run` works with.

    Attributes:
        run: The opened device and this process's place; None for a variant without a device.
        setting: Of the call.
        say: Tells the user, in a few words, what is being done now; with `within`, the process counts as hanging if it
            says nothing else for so many seconds.
        limit: Seconds that this process has.
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
    """What each module of `dino.verify.steps` has."""

    TITLE: str

    def list_variants(self, setting: Setting) -> Sequence[Variant]:
        """In the order in which they run."""

    def run(self, variant: Variant, bench: Bench) -> Mapping[str, Any]:
        """In the variant's own process; plain values of JSON only."""

    def follow(self, result: Result, setting: Setting) -> Sequence[Variant]:
        """What is to be run because of a result; a module may do without this function."""

    def judge(self, results: Sequence[Result], setting: Setting) -> list[Finding]:
        """A finding for each result, all of which ended well."""

    def tell_failure(self, finding: Finding, setting: Setting) -> Finding:
        """Add what is known of a result that did not end well; a module may do without this function."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What came of one step.

    Attributes:
        number: In the order of the steps, from 1.
        name: Of its module.
        title: Of the step.
        findings: In the order in which they ran.
        reason: Why it was not run, where it was not.
        seconds: That it took.
    """

    number: int
    name: str
    title: str
    findings: tuple[Finding, ...] = ()
    reason: str = ""
    seconds: float = 0.0

    @property
    def status(self) -> str:
        """Of the worst part."""
        return find_worst(finding.status for finding in self.findings)

    @property
    def worst(self) -> Finding | None:
        """Of the worst parts the first, or the last if all is well, since references run first; None without parts."""
        found = [finding for finding in self.findings if finding.status == self.status]
        return None if not found else found[0] if self.status in (FAIL, SLOW) else found[-1]


def accept(
    result: Result, status: str, summary: str, remedy: str | None = None, **more: Any
) -> Finding:
    """A finding about a variant that ended well."""
    return Finding(
        variant=result.variant,
        status=status,
        summary=summary,
        remedy=remedy,
        figures={**(result.figures or {}), **more},
        seconds=result.seconds,
    )


def find_worst(statuses: Iterable[str]) -> str:
    """The worst of some statuses; NOT_RUN if there are none."""
    found = set(statuses)
    return next((status for status in WORST_FIRST if status in found), NOT_RUN)
