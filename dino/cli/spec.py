"""How one setting is written on the command line."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How one setting is written on the command line.

    Attributes:
        help: Meaning, with unit and range.
        also: Other spellings.
        spelling: The usual spelling, if it is not `--name`.
        switch: Whether its presence means true; it then takes no value.
    """

    help: str = field(kw_only=False)
    also: tuple[str, ...] = ()
    spelling: str | None = None
    switch: bool = False
