"""What `hl-smi` prints, and who holds the cards; texts in, findings out.

Not verified on hardware. Two shapes are assumed, and whatever else comes is "not understood" and never an error.
The query (`hl-smi -Q ... -f csv`), a head line and one line a card, with or without units:

    index, name, driver_version, memory.total [MiB], memory.used [MiB], utilization.aip [%], module_id
    0, HL-225, 1.21.0-ca59b5a, 98304 MiB, 768 MiB, 0 %, 2

The plain table, of which three kinds of lines are read: the driver, each card's first line, and the processes after
"Compute Processes" (index, process id, type, name, memory; N/A for none):

    | Driver Version:                                     1.21.0-ca59b5a          |
    |   0  HL-225              N/A  | 0000:33:00.0     N/A |                   0  |
    |   0        4711   C      python3.10                               30000MiB  |
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dino.doctor.report import Problem

QUERY = ("index", "name", "driver_version", "memory.total", "memory.used", "utilization.aip", "module_id")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card; texts are as printed, empty where the output did not have them."""

    index: int
    name: str
    driver: str = ""
    total: str = ""
    used: str = ""
    load: str = ""
    module: int | None = None


class Holder(NamedTuple):
    """A process that has a card open."""

    card: int
    pid: int
    name: str


def parse_query(text: str) -> list[Card]:
    """Cards of the query's output; lines of another shape are passed over."""
    cards = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) != len(QUERY) or not is_number(cells[0]):
            continue
        row = dict(zip(QUERY, cells, strict=True))
        module = row["module_id"]
        cards.append(
            Card(
                index=int(row["index"]),
                name=row["name"],
                driver=row["driver_version"],
                total=row["memory.total"],
                used=row["memory.used"],
                load=row["utilization.aip"],
                module=int(module) if is_number(module) else None,
            )
        )
    return cards


def parse_table(text: str) -> tuple[list[Card], list[Holder]]:
    """Cards and processes of the plain table; lines of another shape are passed over."""
    above, _, below = text.partition("Compute Processes")
    driver = re.search(r"Driver Version:\s*([^\s|]+)", above)
    rows = re.findall(
        r"^\|[ \t]*(\d{1,3})[ \t]+(HL-?\S+|Gaudi\S*)[ \t].*\|", above, re.MULTILINE | re.IGNORECASE | re.ASCII
    )
    cards = [Card(index=int(index), name=name, driver=driver[1] if driver else "") for index, name in rows]
    rows = re.findall(r"^\|[ \t]*(\d{1,3})[ \t]+(\d{1,9})[ \t]+\S+[ \t]+(\S+)", below, re.MULTILINE | re.ASCII)
    return cards, [Holder(int(index), int(pid), name) for index, pid, name in rows]


def is_number(text: str) -> bool:
    """Whether a cell is a small whole number."""
    return re.fullmatch(r"\d{1,9}", text, re.ASCII) is not None


def describe_cards(cards: Sequence[Card]) -> list[str]:
    """One line a card."""
    return [
        ", ".join(
            [f"{card.index}: {card.name}"]
            + [f"module {card.module}"] * (card.module is not None)
            + [f"{card.used} of {card.total} used"] * bool(card.total)
            + [f"load {card.load}"] * bool(card.load)
        )
        for card in cards
    ]


def describe_holders(holders: Sequence[Holder]) -> str:
    """Who has which card open."""
    return "; ".join(f"card {holder.card}: {holder.name} (pid {holder.pid})" for holder in holders)


def check_cards(cards: Sequence[Card], holders: Sequence[Holder], modules: set[int] | None) -> list[Problem]:
    """Cards that another process holds, or that a choice of modules leaves out.

    Args:
        cards: All that were found.
        holders: Processes that have one open.
        modules: The chosen ones; None for all.
    """
    known = [card for card in cards if card.module is not None]
    chosen = [card for card in cards if modules is None or card.module is None or card.module in modules]
    if modules and known and not chosen:
        cause = f"HABANA_VISIBLE_MODULES names {sorted(modules)}, and the cards here are {_modules(known)}"
        return [Problem(cause, "name modules that are here, or unset it")]
    wanted = {card.index for card in chosen}
    held = {holder.card for holder in holders} & wanted
    if not held:
        return []
    whom = f"in use: {describe_holders([holder for holder in holders if holder.card in wanted])}"
    remedy = "end those processes (a run that was killed may leave some), or wait for them"
    if held == wanted:
        return [Problem(f"all cards are {whom}; a run ends with 'Device acquire failed'", remedy)]
    count = f"{len(wanted - held)} of {len(wanted)} cards are free"
    cause = f"{whom}; {count}, and a run that wants a card in use ends with 'Device acquire failed'"
    return [Problem(cause, f"{remedy}; or choose free ones by HABANA_VISIBLE_MODULES", blocking=False)]


def _modules(cards: Sequence[Card]) -> str:
    return ", ".join(str(card.module) for card in cards)


def find_driver(cards: Sequence[Card], table: str) -> str | None:
    """The driver's version, from the cards or the plain table's head."""
    found = re.search(r"Driver Version:\s*([^\s|]+)", table)
    return next((card.driver for card in cards if card.driver), found[1] if found else None)


def holders_of_files(open_files: Mapping[int, tuple[str, Sequence[str]]]) -> list[Holder]:
    """Holders from {pid: (name, device files it has open)}; a file's number is the card's index."""
    holders = []
    for pid, (name, paths) in sorted(open_files.items()):
        numbers = sorted({int(number[0]) for path in paths if (number := re.findall(r"\d+$", path))})
        holders += [Holder(number, pid, name) for number in numbers]
    return holders
