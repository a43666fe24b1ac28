"""How one setting is written on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How one setting is written on the command line.

    Attributes:
        help: What it means, with unit and range.
        choices: Allowed values.
        also: Other spellings.
        spelling: The usual one, if it is not `--name`.
        switch: Present means true; takes no value.
        least: Smallest number, or smallest of each of several.
        most: Largest.
    """

    help: str = field(kw_only=False)
    choices: tuple[str, ...] | None = None
    also: tuple[str, ...] = ()
    spelling: str | None = None
    switch: bool = False
    least: float | None = None
    most: float | None = None
