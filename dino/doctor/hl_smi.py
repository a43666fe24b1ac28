"""Parses the output of `hl-smi` and finds who holds the cards. Pure: texts in, findings out.

Not verified on hardware. Public outputs of software 1.16 to 1.24 have these two forms
(tests/doctor/test_hl_smi.py). Any other output is reported as "not understood", never as an error.
The query (`hl-smi -Q ... -f csv`) prints a header and one line per card, with or without units:

    index, name, driver_version, memory.total [MiB], memory.used [MiB], utilization.aip [%],
    module_id 0, HL-225, 1.21.0-ca59b5a, 98304 MiB, 768 MiB, 0 %, 2

Four kinds of lines of the plain table are read: the driver, each card's two lines, and the
processes after "Compute Processes" (index, process id, type, name, memory). N/A means that there is
no process, or that it belongs to another user or container:

    | Driver Version:                                     1.21.0-ca59b5a          |
    |   0  HL-225              N/A  | 0000:33:00.0     N/A |                   0  |
    | N/A   20C   P0  500W /  600W  |   768MiB /  98304MiB |     0%            0% |
    |   0        4711   C      python3.10                               30000MiB  |
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from dino.doctor.report import Problem

MAP_QUERY = ("-Q", "index,module_id", "-f", "csv")  # a run makes this query too
IDLE_MIB = 1024  # an idle card has 672 or 768 MiB in use in the public outputs
QUERY = (
    "index",
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "utilization.aip",
    "module_id",
)


@dataclass(frozen=True, kw_only=True)
class Card:
    """One card; texts are as printed, or empty if the output lacks them."""

    index: int
    name: str
    driver: str = ""
    total: str = ""
    used: str = ""
    load: str = ""
    module: int | None = None

    @property
    def is_filled(self) -> bool:
        """Whether more memory is in use than on an idle card."""
        mib = re.match(r"\d{1,9}(?!\d)", self.used, re.ASCII)
        return mib is not None and int(mib[0]) > IDLE_MIB

    @property
    def generation(self) -> int | None:
        """Gaudi generation from the board's name (HL-225: 2, HL-325L: 3); None if it is unknown."""
        board = re.match(r"HL-?([23])", self.name, re.IGNORECASE)
        return int(board[1]) if board else None


class Holder(NamedTuple):
    """A process that has a card open."""

    card: int
    pid: int
    name: str


def parse_query(text: str) -> list[Card]:
    """Parse the cards of the query's output; lines of another form are skipped."""
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
    """Parse the cards and processes of the plain table; lines of another form are skipped."""
    above, _, below = text.partition("Compute Processes")
    driver = find_driver((), above) or ""
    cards: list[Card] = []
    for line in above.splitlines():
        if card := re.match(
            r"\|[ \t]*(\d{1,3})[ \t]+(HL-?\S+|Gaudi\S*)[ \t].*\|", line, re.IGNORECASE | re.ASCII
        ):
            cards.append(Card(index=int(card[1]), name=card[2], driver=driver))
        elif (
            cards
            and not cards[-1].used
            and (memory := re.search(r"(\d+) ?MiB */ *(\d+) ?MiB", line, re.ASCII))
        ):
            cards[-1] = dataclasses.replace(
                cards[-1], used=f"{memory[1]} MiB", total=f"{memory[2]} MiB"
            )
    rows = re.findall(
        r"^\|[ \t]*(\d{1,3})[ \t]+(\d{1,9})[ \t]+\S+[ \t]+(\S+)", below, re.MULTILINE | re.ASCII
    )
    return cards, [Holder(int(index), int(pid), name) for index, pid, name in rows]


def is_number(text: str) -> bool:
    """Whether a cell is a small whole number."""
    return re.fullmatch(r"\d{1,9}", text, re.ASCII) is not None


def describe_cards(cards: Sequence[Card]) -> list[str]:
    """Return one line per card."""
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
    """Return one line that names the process that holds each card."""
    return "; ".join(f"card {holder.card}: {holder.name} (pid {holder.pid})" for holder in holders)


def choose_cards(cards: Sequence[Card], modules: set[int] | None) -> list[Card]:
    """Return the cards of the chosen modules (None: all), and cards whose module is unknown."""
    return [
        card for card in cards if modules is None or card.module is None or card.module in modules
    ]


def find_free(cards: Sequence[Card], holders: Sequence[Holder]) -> list[Card]:
    """Return the cards that no process holds and that use no more memory than an idle card."""
    held = {holder.card for holder in holders}
    return [card for card in cards if card.index not in held and not card.is_filled]


def check_cards(
    cards: Sequence[Card], holders: Sequence[Holder], modules: set[int] | None
) -> list[Problem]:
    """Report cards that another process holds or that a choice of modules excludes.

    Args:
        cards: All cards that were found.
        holders: Processes that have a card open.
        modules: Chosen module numbers; None for all.
    """
    numbered = [card for card in cards if card.module is not None]
    chosen = choose_cards(cards, modules)
    if modules and numbered and not chosen:
        cause = (
            f"HABANA_VISIBLE_MODULES names {sorted(modules)}, but the cards here are "
            f"{_modules(numbered)}"
        )
        return [Problem(cause, "name modules of these cards, or unset it")]
    return _check_held(chosen, holders) + _check_filled(chosen, holders)


def _check_held(chosen: Sequence[Card], holders: Sequence[Holder]) -> list[Problem]:
    indices = {card.index for card in chosen}
    held = {holder.card for holder in holders} & indices
    if not held:
        return []
    users = f"in use: {describe_holders([holder for holder in holders if holder.card in indices])}"
    remedy = "end those processes (a killed run may leave some), or wait for them"
    if held == indices:
        return [Problem(f"all cards are {users}; a run ends with 'Device acquire failed'", remedy)]
    cause = (
        f"{users}; {len(indices - held)} of {len(indices)} cards are not held, and a run that "
        "takes "
        "a card in use ends with 'Device acquire failed'"
    )
    return [
        Problem(
            cause, f"{remedy}; or choose free cards with HABANA_VISIBLE_MODULES", blocking=False
        )
    ]


def _check_filled(chosen: Sequence[Card], holders: Sequence[Holder]) -> list[Problem]:
    """Report memory in use without a visible process.

    hl-smi shows other users' processes to root only, and no process outside its own container.
    """
    held = {holder.card for holder in holders}
    filled = [card for card in chosen if card.is_filled and card.index not in held]
    if not filled:
        return []
    listed = ", ".join(f"card {card.index}: {card.used}" for card in filled)
    cause = (
        f"memory is in use but no process is visible ({listed}); a process of another user or "
        f"container probably holds {'it' if len(filled) == 1 else 'them'}"
    )
    remedy = (
        "run hl-smi as root on the host to see it; or choose other cards with "
        "HABANA_VISIBLE_MODULES"
    )
    return [Problem(cause, remedy, blocking=False)]


def _modules(cards: Sequence[Card]) -> str:
    return ", ".join(str(card.module) for card in cards)


def find_driver(cards: Sequence[Card], table: str) -> str | None:
    """Return the driver version, from the cards or the head of the plain table."""
    head = re.search(r"Driver Version:\s*([^\s|]+)", table)
    return next((card.driver for card in cards if card.driver), head[1] if head else None)


def holders_of_files(open_files: Mapping[int, tuple[str, Sequence[str]]]) -> list[Holder]:
    """Convert {pid: (name, open device files)} to holders; a file's number is the card's index."""
    holders = []
    for pid, (name, paths) in sorted(open_files.items()):
        numbers = sorted(
            {int(number[0]) for path in paths if (number := re.findall(r"\d+$", path))}
        )
        holders += [Holder(number, pid, name) for number in numbers]
    return holders
