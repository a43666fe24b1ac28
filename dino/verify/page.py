"""Writes the page that people read: a line per step, failures, the mode to use, what to do next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from dino.verify.base import FAIL, NOT_RUN, SLOW

WIDTH = 120
WORDS = {
    "pass": "correct and as expected",
    "slow": "correct, but something costs time in every step",
    "fail": "wrong numbers, or it did not finish",
    "not run": "not tested",
}


def write_page(report: Mapping[str, Any], place: str) -> str:
    """Return the report (`report.build_report`) as text.

    Args:
        report: The report as in the JSON file.
        place: Name of that file, for the reader to send.
    """
    return "\n".join(_lines(report, place)) + "\n"


def _lines(report: Mapping[str, Any], place: str) -> Iterator[str]:
    steps, conclusion = report["steps"], report["conclusion"]
    yield (
        f"dino.verify, {report['size']}, --device {report['device']}, {report['made']}, "
        f"{report['seconds']:.0f} s"
    )
    if report["stopped"]:
        yield "The run was stopped early; steps that are not listed were not run."
    yield ""
    width = max((len(step["title"]) for step in steps), default=0)
    for step in steps:
        head = f"{step['number']}  {step['title']:<{width}}  {step['status']:<7}  "
        yield _wrap(head, step["summary"])
    for step in steps:
        yield from _tell_parts(step)
    yield ""
    yield _wrap("mode to use:   ", conclusion["reason"])
    yield _wrap("next:          ", conclusion["next"])
    yield _wrap(
        "to send back:  ",
        f"{place}, whatever the result: it holds no names of hosts, users or folders",
    )
    yield ""
    yield from (f"{word}: {meaning}" for word, meaning in WORDS.items())


def _tell_parts(step: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of a step, if there are several or one of them needs attention."""
    parts = step["parts"]
    if len(parts) < 2 and step["status"] not in {FAIL, SLOW}:
        return
    yield ""
    yield f"{step['number']}  {step['title']}"
    width = max(len(part["name"]) for part in parts)
    for part in parts:
        yield _wrap(f"   {part['name']:<{width}}  {part['status']:<7}  ", part["summary"])
        if part["remedy"] and part["status"] != NOT_RUN:
            yield _wrap("   " + " " * width + "           ", f"-> {part['remedy']}")


def _wrap(head: str, text: str) -> str:
    plain = " ".join(str(text).split())
    indent = " " * len(head)
    return (
        textwrap.fill(
            plain, WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False
        )
        or head
    )
