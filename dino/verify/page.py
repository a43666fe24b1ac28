"""The page that people read: a line a step, what failed, the mode to take, and what to do next."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from dino.verify.base import FAIL, NOT_RUN, SLOW

WIDTH = 120
WORDS = {
    "pass": "right, and as it should be",
    "slow": "right, but something costs time in every step",
    "fail": "wrong numbers, or it did not get to its end",
    "not run": "nothing is said about it",
}


def write_page(report: Mapping[str, Any], place: str) -> str:
    """The report (`report.build_report`) as text.

    Args:
        report: As it is in the JSON file.
        place: Name of that file, for the reader to send.
    """
    return "\n".join(_lines(report, place)) + "\n"


def _lines(report: Mapping[str, Any], place: str) -> Iterator[str]:
    steps, conclusion = report["steps"], report["conclusion"]
    yield f"dino.verify, {report['size']}, --device {report['device']}, {report['made']}, {report['seconds']:.0f} s"
    if report["stopped"]:
        yield "It was stopped before its end; what is not listed was not run."
    yield ""
    width = max((len(step["title"]) for step in steps), default=0)
    for step in steps:
        head = f"{step['number']}  {step['title']:<{width}}  {step['status']:<7}  "
        yield _wrap(head, step["summary"])
    for step in steps:
        yield from _tell_parts(step)
    yield ""
    yield _wrap("mode to take:  ", conclusion["reason"])
    yield _wrap("next:          ", conclusion["next"])
    yield _wrap(
        "to send back:  ",
        f"{place}, whatever it says: it holds no names of hosts, users or folders",
    )
    yield ""
    yield from (f"{word}: {meaning}" for word, meaning in WORDS.items())


def _tell_parts(step: Mapping[str, Any]) -> Iterator[str]:
    """The parts of a step, where they do not all say the same."""
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
