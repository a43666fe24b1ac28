"""Runs the operators of one real step one by one, device against CPU, and times them.

An operator is missing, wrong, run on the host, or correct. One that hangs or ends its process is
named, and the others run in a new process without it.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dino.verify.base import (
    EAGER,
    FAIL,
    FORMATS,
    LAZY,
    NOT_RUN,
    PASS,
    SLOW,
    Bench,
    Finding,
    Result,
    Setting,
    Variant,
    accept,
)

if TYPE_CHECKING:
    from dino.devices.eager import EagerDevice

TITLE = "operator replay"
BATCHES = {"quick": 1, "full": 64}
SILENCE = {"quick": 15.0, "full": 30.0}  # seconds per operator; a device compiles some first
MARGIN = 5.0  # seconds before the limit in which no operator starts
RESTARTS = 5  # processes that may be lost, each to a different operator
SLOWEST = 10  # how many of the slowest operators the report lists
WRONG = ("failing", "missing", "inaccurate")


def list_variants(setting: Setting) -> Sequence[Variant]:
    """Return one variant per number format: lazy if that is a run's default mode, else eager."""
    mode = LAZY if setting.modes[0] == LAZY else EAGER
    return [
        Variant(
            label=precision,
            device=setting.device,
            mode=mode,
            options={
                "format": precision,
                "skip": [],
                "batch": BATCHES[setting.size],
                "within": SILENCE[setting.size],
            },
        )
        for precision in FORMATS
    ]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Run one list; each outcome is on disk before the next operator starts."""
    from dino.verify.operators import list_operators, replay

    folder, options, batch = bench.setting.folder, variant.options, int(variant.options["batch"])
    kept, number_format = _kept(folder, variant.label), str(options["format"])
    earlier = {
        each["operator"]: each for other in FORMATS for each in read_kept(_kept(folder, other))
    }
    done = {each["operator"] for each in read_kept(kept)}
    with kept.open("a", encoding="utf-8") as file:

        def keep(outcome: Mapping[str, Any]) -> None:
            file.write(json.dumps(outcome) + "\n")
            file.flush()

        for name in list_operators(number_format, batch=batch):
            if name in earlier and name not in done:  # another list holds the same call
                keep(earlier[name])
        outcomes = replay(
            cast("EagerDevice", bench.opened.device),
            number_format,
            batch=batch,
            seconds=max(1.0, bench.limit - MARGIN),
            report=lambda name: bench.say(name, within=options.get("within")),
            skip={*options["skip"], *earlier, *done},
        )
        for outcome in outcomes:
            keep(outcome._asdict())
    return {}


def follow(result: Result, setting: Setting) -> Sequence[Variant]:
    """Return the same variant without the operator in which its process was lost."""
    options = result.variant.options
    lost = [*options.get("lost", ())]
    if (
        result.kind not in {"hang", "killed"}
        or not result.last
        or len(lost) >= RESTARTS
        or result.last in lost
    ):
        return []
    with _kept(setting.folder, result.variant.label).open("a", encoding="utf-8") as file:
        detail = {
            "operator": result.last,
            "status": "failing",
            "detail": result.error,
            "microseconds": None,
        }
        file.write(json.dumps(detail) + "\n")
    skip = [*options["skip"], result.last]
    return [
        replace(result.variant, options={**options, "skip": skip, "lost": [*lost, result.last]})
    ]


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Judge by number format: wrong operators first, then those that the host ran."""
    return [
        _judge(result, read_kept(_kept(setting.folder, result.variant.label))) for result in results
    ]


def tell_failure(finding: Finding, setting: Setting) -> Finding:
    """Name the operators that were found wrong before the last process was lost."""
    outcomes = read_kept(_kept(setting.folder, finding.variant.label))
    wrong = [each for each in outcomes if each["status"] in WRONG]
    named = f"{_name(wrong)}; then {finding.summary}" if wrong else finding.summary
    return replace(finding, summary=named, figures={"outcomes": wrong, "operators": len(outcomes)})


def _judge(result: Result, outcomes: Sequence[Mapping[str, Any]]) -> Finding:
    counts = Counter(str(each["status"]) for each in outcomes)
    odd = [each for each in outcomes if each["status"] not in {"pass", "not run"}]
    times = [each["microseconds"] for each in outcomes if each["microseconds"] is not None]
    slowest = sorted(
        (each for each in outcomes if each["microseconds"]), key=lambda each: -each["microseconds"]
    )
    more: dict[str, Any] = {
        "counts": dict(counts),
        "outcomes": [dict(each) for each in odd],
        "microseconds": {
            "median": statistics.median(times) if times else None,
            "slowest": {each["operator"]: each["microseconds"] for each in slowest[:SLOWEST]},
            "all": {
                each["operator"]: each["microseconds"] for each in outcomes if each["microseconds"]
            },
        },
    }
    wrong = [each for each in odd if each["status"] in WRONG]
    if wrong:
        remedy = (
            "send the report: it names the operators; until then train in a mode that steps 3, 5 "
            "and 6 "
            "found correct"
        )
        return accept(
            result, FAIL, f"{len(wrong)} of {len(outcomes)}: {_name(wrong)}", remedy, **more
        )
    if odd:
        remedy = (
            "the numbers are correct, but each fallback costs a trip to the host; send the report"
        )
        return accept(
            result, SLOW, f"{len(odd)} of {len(outcomes)} on the host: {_name(odd)}", remedy, **more
        )
    if not counts["pass"]:
        return accept(result, NOT_RUN, "no operator was run", **more)
    left = f", {counts['not run']} not run" if counts["not run"] else ""
    median = f"; the median launch takes {statistics.median(times):.0f} us" if times else ""
    summary = f"{counts['pass']} of {len(outcomes)} correct{left}{median}"
    return accept(result, PASS, summary, **more)


def _name(outcomes: Sequence[Mapping[str, Any]]) -> str:
    parts = [f"{each['operator']} {each['status']} ({each['detail']})" for each in outcomes[:3]]
    return "; ".join(parts) + (f"; and {len(outcomes) - 3} more" if len(outcomes) > 3 else "")


def _kept(folder: Path, label: str) -> Path:
    return folder / f"operators_{label}.jsonl"


def read_kept(path: Path) -> list[dict[str, Any]]:
    """Return the outcomes of one list so far, from all processes; none before the first."""
    return (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if path.exists()
        else []
    )
