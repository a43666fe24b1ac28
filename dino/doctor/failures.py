"""Explains failed bridge imports and failed products on a card. Pure: messages in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dino.doctor.report import Fact, Problem
from dino.doctor.software import FRESH, LAZY_ELSEWHERE

# Texts, any of which identifies the message (case-insensitive); cause; remedy.
Explanation = tuple[tuple[str, ...], str, str]

# The first match decides: one message may contain several of these texts.
CARD: tuple[Explanation, ...] = (
    (
        ("Device not found", "synStatus=8", "synStatus 8"),
        "the card was not found: processes left over after Ctrl-C may hold it, or the container "
        "was given no card",
        "end leftover processes (hl-smi on the host lists them); start the container with "
        "--runtime=habana, or a pod with runtimeClassName habana",
    ),
    (
        ("acquire",),
        "the card cannot be acquired: another process holds it, driver and software do not match, "
        "or a pod runs without runtimeClassName habana (no /dev/infiniband)",
        "end the process that holds it; then compare the releases of driver and software",
    ),
    (
        ("Graph compile failed",),
        "the card's compiler failed: GC_KERNEL_PATH is unset or names kernels of another release, "
        "or the software is a mix of releases or does not match the driver",
        (
            "set GC_KERNEL_PATH to libtpc_kernels.so of this release; then compare the releases of "
            "driver and software"
        ),
    ),
    (
        ("synStatus 26", "synStatus=26"),
        "the vendor's software failed (synStatus 26): it is a mix of releases or does not match "
        "the driver, GC_KERNEL_PATH is unset, or another process holds the card",
        "compare the releases of driver and software; set GC_KERNEL_PATH to libtpc_kernels.so of "
        "this release",
    ),
    (
        ("Allocation failed",),
        "the card's memory is full although this run put nothing there: another process uses it",
        "end that process; hl-smi on the host lists all processes",
    ),
    (
        ("no answer in",),
        "the card does not answer: it, or the driver, is stuck",
        "end leftover processes; if that does not help, have the host's driver reloaded",
    ),
)

IMPORT: tuple[Explanation, ...] = (
    (
        ("No module named 'habana_frameworks",),
        "the bridge (habana_frameworks.torch) is not installed in this Python",
        "start from a Gaudi container and use its $PYTHON; or use --device cuda or cpu",
    ),
    (
        ("Stock PyTorch",),
        "in lazy mode the bridge refuses a torch that is not the vendor's build",
        LAZY_ELSEWHERE,
    ),
    (
        ("only supports PyTorch", "neither HPU fork nor CPU upstream", "no attribute 'startswith'"),
        "this bridge is not for this build of torch: there is one bridge for the vendor's torch "
        "and one for the upstream CPU build",
        FRESH,
    ),
    (
        ("cannot open shared object file",),
        "a library of the Gaudi software is missing",
        "start from a Gaudi container; outside a container install the software of the bridge's "
        "release",
    ),
    (
        ("undefined symbol",),
        "the bridge and the libraries it was built with are not of the same release: pip replaced "
        "the container's torch, or the libraries below it are of another release",
        f"{FRESH}; outside a container install all software from one release",
    ),
    *CARD,
)


def explain_import(message: str, known: Sequence[Problem] = ()) -> Problem:
    """Explain why the bridge cannot be imported.

    Args:
        message: Text of the error, or how the process ended.
        known: Problems of torch and bridge found without importing; the first one is the reason.
    """
    if known:
        return Problem(
            f"the bridge cannot be imported ({message}): {known[0].cause}", known[0].remedy
        )
    if message.startswith("no answer in"):
        cause = f"the bridge is installed but cannot be imported: {message}"
        return Problem(
            cause,
            "look for a network disk that hangs and for processes left over from earlier runs",
        )
    other = (
        f"the bridge is installed but cannot be imported: {message}",
        "compare torch, bridge and driver above with one release in the table of docs/gaudi.md",
    )
    cause, remedy = _find(message, IMPORT, other)
    return Problem(cause if message in cause else f"{cause} ({message})", remedy)


def judge_product(
    answer: Mapping[str, Any] | None, error: str | None, mode: str
) -> tuple[Fact, list[Problem]]:
    """Judge the matrix product computed on the card.

    Args:
        answer: `garbled`, how many numbers a copy to the card and back changed, and `wrong`, how
            many numbers of the product are wrong; None if the product failed.
        error: Why it failed.
        mode: Name of the execution mode.
    """
    if answer is None:
        other = (
            "a product of two small matrices on the card failed",
            "report its message together with the output of this command",
        )
        cause, remedy = _find(error or "", (*CARD, *IMPORT), other)
        return Fact("product", f"failed in {mode} mode"), [Problem(f"{cause} ({error})", remedy)]
    garbled, wrong = answer.get("garbled"), answer.get("wrong")
    if garbled == wrong == 0:
        return Fact("product", f"correct, on the card in {mode} mode"), []
    cause = (
        f"the card returns wrong numbers: {garbled} of those only copied there and back, and "
        f"{wrong} of those of a product"
    )
    remedy = (
        "boot the host with iommu=pt intel_iommu=on (missing parameters are the known cause of "
        "garbled numbers); then check the firmware"
    )
    return Fact("product", f"wrong numbers in {mode} mode"), [Problem(cause, remedy)]


def _find(message: str, table: Sequence[Explanation], other: tuple[str, str]) -> tuple[str, str]:
    plain = message.lower()
    return next(
        (
            (cause, remedy)
            for texts, cause, remedy in table
            if any(text.lower() in plain for text in texts)
        ),
        other,
    )
