"""Concludes from all findings: the fastest correct mode, and the next thing to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dino.verify.base import COMPILED, EAGER, FAIL, LAZY, NOT_RUN, SLOW, Setting, StepReport

RIGHT_STEPS = ("product", "golden", "alignment", "training")  # they show whether a mode is correct
WITNESSES = ("golden", "alignment", "training")  # at least one of them must have run
SPEED = "speed"
TYPED = {
    LAZY: "--lazy_mode true",
    COMPILED: "--lazy_mode false --compile",
    EAGER: "--lazy_mode false",
}  # for users


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one mode in one number format.

    Attributes:
        mode: Mode of the device.
        precision: Number format.
        wrong: Indices (from 1) of the steps with wrong numbers.
        failed: Indices (from 1) of the steps that did not finish.
        seen: Names of the steps that found it correct.
        rate: Images per second, if measured.
    """

    mode: str
    precision: str
    wrong: tuple[int, ...]
    failed: tuple[int, ...]
    seen: tuple[str, ...]
    rate: float | None

    @property
    def is_right(self) -> bool:
        """Whether at least one step checked it and no step found it wrong."""
        return not self.wrong and not self.failed and any(name in WITNESSES for name in self.seen)


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The end of the report.

    Attributes:
        mode: The fastest correct mode; None if it is not known.
        precision: Its number format; None if `mode` is None.
        reason: One line.
        next: The next thing to do, one line.
    """

    mode: str | None
    precision: str | None
    reason: str
    next: str


def conclude(reports: Sequence[StepReport], setting: Setting) -> Conclusion:
    """Draw the conclusion from all steps."""
    verdicts = [
        weigh(reports, mode, precision)
        for mode in setting.modes
        for precision in list_formats(reports, setting)
    ]
    timed = sorted(
        (verdict for verdict in verdicts if verdict.is_right and verdict.rate),
        key=lambda verdict: -(verdict.rate or 0.0),
    )
    best = timed[0] if timed else None
    return Conclusion(
        mode=best.mode if best else None,
        precision=best.precision if best else None,
        reason=tell_modes(verdicts, best),
        next=choose_next(reports, setting, best),
    )


def list_formats(reports: Sequence[StepReport], setting: Setting) -> list[str]:
    """Return the number formats whose speed was measured, else those that were tested."""
    parts = [(report.name, part.variant) for report in reports for part in report.findings]
    tested = [
        (name, variant.precision) for name, variant in parts if variant.device == setting.device
    ]
    timed = dict.fromkeys(precision for name, precision in tested if name == SPEED)
    return list(
        timed or dict.fromkeys(precision for name, precision in tested if name in WITNESSES)
    )


def weigh(reports: Sequence[StepReport], mode: str, precision: str) -> Verdict:
    """Collect what the steps say about a mode and format; step "product" counts for all formats."""
    wrong: list[int] = []
    failed: list[int] = []
    seen: list[str] = []
    rate: float | None = None
    for report in reports:
        for part in report.findings:
            if part.variant.mode != mode or part.variant.label in {"CPU", "machine", "count"}:
                continue
            fits = part.variant.precision == precision or report.name == "product"
            if report.name in RIGHT_STEPS and fits and part.status == FAIL:
                (failed if "kind" in part.figures else wrong).append(report.number)
            elif report.name in RIGHT_STEPS and fits and part.status != NOT_RUN:
                seen.append(report.name)
            elif (
                report.name == SPEED
                and part.variant.label == mode
                and part.variant.precision == precision
            ):
                rate = part.figures.get("images/s")
    return Verdict(
        mode=mode,
        precision=precision,
        wrong=tuple(wrong),
        failed=tuple(failed),
        seen=tuple(seen),
        rate=rate,
    )


def tell_modes(verdicts: Sequence[Verdict], best: Verdict | None) -> str:
    """Return one line about the best mode and the others."""
    parts = []
    for each in verdicts:
        name = f"{each.mode} {each.precision}"
        if each is best:
            continue
        if each.wrong:
            parts.append(f"{name} is wrong ({_name_steps(each.wrong)})")
        elif each.failed:
            parts.append(f"{name} did not finish ({_name_steps(each.failed)})")
        elif each.is_right and each.rate and best and best.rate:
            parts.append(f"{name} is correct and {best.rate / each.rate:.2g} times slower")
        elif each.is_right:
            parts.append(f"{name} is correct, its speed is unknown")
        else:
            parts.append(f"{name} was not tested")
    others = f"; {'; '.join(parts)}" if parts else ""
    if best is None:
        return f"no mode is known to be correct with a measured speed{others}"
    steps = ", ".join(dict.fromkeys(best.seen))
    return f"{best.mode} {best.precision}: correct ({steps}), {best.rate:.4g} images/s{others}"


def _name_steps(numbers: Sequence[int]) -> str:
    different = list(dict.fromkeys(numbers))
    return f"step{'s' * (len(different) > 1)} {', '.join(map(str, different))}"


def choose_next(reports: Sequence[StepReport], setting: Setting, best: Verdict | None) -> str:
    """Return the first failure's remedy, else the first slowness's, else the training command."""
    for status in (FAIL, SLOW):
        found = next(
            ((r, p) for r in reports for p in r.findings if p.status == status and p.remedy), None
        )
        if found is not None:
            report, part = found
            return f"step {report.number}, {part.variant.label}: {part.remedy}"
    if best is None:
        return "run it again with all steps: python -m dino.verify"
    flags = f"--device {setting.device} {TYPED[best.mode]} --precision {best.precision}"
    return f"train: python main_dino.py {flags} --data_path ..."
