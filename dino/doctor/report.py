"""What was found, and how it is printed."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass, field
from typing import NamedTuple

WIDTH = 120


class Fact(NamedTuple):
    """One line of the report."""

    name: str
    value: str


class Problem(NamedTuple):
    """Something wrong, or not as it should be.

    Attributes:
        cause: What was seen and what follows from it, one line.
        remedy: What to do.
        blocking: Whether the device cannot run because of it; else it is a note.
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
        """The problems with which the device cannot run."""
        return [problem for problem in self.problems if problem.blocking]

    def format(self) -> str:
        """One aligned line a fact, then each problem with its remedy."""
        width = max((len(fact.name) for fact in self.facts), default=0) + 2
        lines = [f"{fact.name:<{width}}{' '.join(fact.value.split())}" for fact in self.facts]
        for problem in self.problems:
            kind = "problem: " if problem.blocking else "note: "
            lines += ["", _wrap(kind, problem.cause), _wrap("  remedy: ", problem.remedy)]
        if not self.problems:
            lines += ["", "no problems found"]
        return "\n".join(lines) + "\n"


def _wrap(head: str, text: str) -> str:
    return textwrap.fill(
        " ".join(text.split()),
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )
