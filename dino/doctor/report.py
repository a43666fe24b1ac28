"""The input of an examination, its findings, and how they are printed."""

from __future__ import annotations

import os
import platform
import sys
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from dino.doctor.scrub import build_scrubber

WIDTH = 120


class Case(NamedTuple):
    """Input of an examination.

    Attributes:
        environment: Environment of the planned run.
        lazy_mode: Value of --lazy_mode; None if it was not given.
        compiles: Value of --compile; None if it was not given.
        product: "try" a product on a card, "never" try it, or the caller tries it "later".
        probed: What torch reports about itself; empty if it cannot be imported.
    """

    environment: Mapping[str, str]
    lazy_mode: bool | None = None
    compiles: bool | None = None
    product: Literal["try", "later", "never"] = "try"
    probed: Mapping[str, Any] = {}


class Fact(NamedTuple):
    """One line of the report."""

    name: str
    value: str


class Problem(NamedTuple):
    """Something that is wrong or doubtful.

    Attributes:
        cause: What was seen and what follows from it, on one line.
        remedy: What to do.
        blocking: Whether it keeps the device from running; otherwise it is a note.
    """

    cause: str
    remedy: str
    blocking: bool = True


@dataclass
class Report:
    """Facts and problems of one device, in the order they were found."""

    facts: list[Fact] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def blocking(self) -> list[Problem]:
        """The problems that keep the device from running."""
        return [problem for problem in self.problems if problem.blocking]

    def format(self) -> str:
        """Return one aligned line per fact, then each problem with its remedy."""
        width = max((len(fact.name) for fact in self.facts), default=0) + 2
        lines = [f"{fact.name:<{width}}{_on_one_line(fact.value)}" for fact in self.facts]
        for problem in self.problems:
            head = "problem: " if problem.blocking else "note: "
            lines += ["", _wrap(head, problem.cause), _wrap("  remedy: ", problem.remedy)]
        if not self.problems:
            lines += ["", "no problems found"]
        return "\n".join(lines) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """Return the report for programs, without paths and without names of host and user.

        Returns:
            `facts`, each with `name` and `value`, in order (names may repeat), and `problems`, each
            with `cause`, `remedy` and `blocking`.
        """
        scrub = build_scrubber(
            os.environ, host=platform.node(), paths=(sys.executable, sys.prefix, os.getcwd())
        )
        facts = [
            {"name": fact.name, "value": scrub(_on_one_line(fact.value))} for fact in self.facts
        ]
        problems = [
            {
                "cause": scrub(problem.cause),
                "remedy": scrub(problem.remedy),
                "blocking": problem.blocking,
            }
            for problem in self.problems
        ]
        return {"facts": facts, "problems": problems}


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _wrap(head: str, text: str) -> str:
    return textwrap.fill(
        _on_one_line(text),
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
