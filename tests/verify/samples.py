"""Findings and reports to be told: made by hand, for the tests beside this file."""

from pathlib import Path

from dino.verify.base import FULL, Finding, Result, Setting, StepReport, Variant
from dino.verify.plan import STEPS

SETTING = Setting(
    device="hpu", size=FULL, modes=("lazy", "compiled", "eager"), folder=Path("/nowhere")
)


def variant(label="lazy bf16", **more):
    mode, _, precision = label.partition(" ")
    return Variant(
        **{"label": label, "device": "hpu", "mode": mode, "precision": precision or "fp32", **more}
    )


def result(label="lazy bf16", figures=None, **more):
    return Result(variant=variant(label), figures=figures or {}, seconds=1.5, **more)


def finding(label="lazy bf16", status="pass", summary="right", **more):
    return Finding(variant=more.pop("of", variant(label)), status=status, summary=summary, **more)


def step(name, *findings, reason=""):
    number = STEPS.index(name) + 1
    return StepReport(
        number=number, name=name, title=name.title(), findings=findings, reason=reason, seconds=2.25
    )
