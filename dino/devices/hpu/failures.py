"""Explain errors of the Gaudi software by the words in them. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping

HELD = "the card cannot be acquired: another process holds it, or driver and software differ; "
COMPILER = (
    "the card's compiler failed: GC_KERNEL_PATH may be unset, "
    "or software and driver are of different releases; "
)
GONE = (
    "no card answers: processes that a Ctrl-C left behind may hold it; "
    "end them, or reload the driver; "
)
MIXED = "driver and software do not match, or another process holds the card; "
DOCTOR = "`python -m dino.doctor` shows which"

# Words -> meaning of an error that contains all of them, ignoring case; the longest match wins.
FAILURES: Mapping[tuple[str, ...], str] = {
    ("device acquire failed",): HELD + DOCTOR,
    ("graph compile failed",): COMPILER + DOCTOR,
    ("synstatus=26", "compil"): COMPILER + DOCTOR,
    ("synstatus=26",): MIXED + DOCTOR,
    ("device acquire failed", "device not found"): GONE + DOCTOR,
    ("device acquire failed", "synstatus=8"): GONE + DOCTOR,
    ("device not found",): GONE + DOCTOR,
    ("synstatus=8",): GONE + DOCTOR,
    ("allocation failed for size",): "the card's memory is full; lower `batch_size_per_device`, "
    "or train with `recompute` blocks",
}


def explain_failure(text: str) -> str | None:
    """Return one line of cause and remedy for an error's text, or None if it is unknown."""
    plain = re.sub(r"synstatus\W*(?=\d)", "synstatus=", text.lower())
    fitting = [words for words in FAILURES if all(_holds(plain, word) for word in words)]
    return FAILURES[max(fitting, key=lambda words: sum(map(len, words)))] if fitting else None


def is_of_compiler(text: str) -> bool:
    """Whether the error is the card compiler's; its cause may be the graph or the machine."""
    return explain_failure(text) == COMPILER + DOCTOR


def _holds(text: str, word: str) -> bool:
    """Whether the text contains the word, not followed by a further digit."""
    return re.search(rf"{re.escape(word)}(?!\d)", text) is not None
