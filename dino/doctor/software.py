"""Versions, execution mode and what an import of the Habana bridge died of; texts in, findings out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from dino.doctor.report import Problem

Release = tuple[int, int]

TORCH_FLOOR: Release = (2, 5)  # as in requirements.txt
EAGER_SINCE: Release = (1, 21)  # the first Gaudi software whose own default is PT_HPU_LAZY_MODE=0

# Gaudi software release -> the torch that its bridge was built for (the vendor's list of supported configurations).
TORCH_OF_RELEASE: Mapping[Release, Release] = {
    (1, 17): (2, 3),
    (1, 18): (2, 4),
    (1, 19): (2, 5),
    (1, 20): (2, 6),
    (1, 21): (2, 6),
    (1, 22): (2, 7),
    (1, 23): (2, 9),
}

MODES: Mapping[str, str] = {
    "0": "eager, and --compile",
    "1": "lazy: one graph per step mark, no --compile",
    "2": "lazy with a graph after each operator, for debugging",
    "3": "an internal test mode of the bridge (lazy)",
}


def read_release(version: str | None) -> Release | None:
    """Major and minor number of a version or driver text; None where there are none."""
    found = re.search(r"(\d+)\.(\d+)", version or "")
    return (int(found[1]), int(found[2])) if found else None


def show(release: Release) -> str:
    """(1, 21) -> 1.21."""
    return ".".join(map(str, release))


def is_fork(torch_version: str) -> bool:
    """Whether this is the vendor's build of torch, whose local version begins with "git"."""
    return torch_version.partition("+")[2].startswith("git")


def check_torch(version: str | None) -> list[Problem]:
    """No torch, or one older than this package works with."""
    if version is None:
        cause = "torch is not installed in this Python"
        return [Problem(cause, "make demo installs it; in a Gaudi container use the container's own $PYTHON")]
    release = read_release(version)
    if release is not None and release < TORCH_FLOOR:
        cause = f"torch {version} is older than {show(TORCH_FLOOR)}, which this package needs"
        return [Problem(cause, "use a newer torch; on Gaudi that is software 1.19 or later, with its own container")]
    return []


def choose_mode(environment: Mapping[str, str], bridge: Release | None) -> str:
    """The value of PT_HPU_LAZY_MODE in a run: as set, else the release's default, else 0 (eager)."""
    default = str(int(bridge is not None and bridge < EAGER_SINCE))
    return environment.get("PT_HPU_LAZY_MODE", default)


def describe_mode(environment: Mapping[str, str], bridge: Release | None) -> str:
    """The execution mode, and whether it was set or is the release's default."""
    mode = choose_mode(environment, bridge)
    text = MODES.get(mode, "not a value of the documentation; the bridge takes all but 0 for lazy")
    if "PT_HPU_LAZY_MODE" in environment:
        return f"PT_HPU_LAZY_MODE={mode}: {text}"
    why = "the release is unknown" if bridge is None else f"the default of software {show(bridge)}"
    return f"PT_HPU_LAZY_MODE unset, a run takes {mode} ({why}): {text}"


def check_mode(environment: Mapping[str, str], bridge: Release | None, torch_version: str | None) -> list[Problem]:
    """A lazy mode that the torch build cannot have, or that nobody should want."""
    mode = choose_mode(environment, bridge)
    problems = []
    if mode != "0" and torch_version and bridge and not is_fork(torch_version):
        cause = f"lazy mode runs on the Gaudi build of torch only, and torch {torch_version} is not that one"
        problems.append(Problem(cause, "PT_HPU_LAZY_MODE=0 (--lazy_mode false), or the container's own torch"))
    if mode not in {"0", "1"}:
        cause = f"PT_HPU_LAZY_MODE={mode} is not for training: {MODES.get(mode, 'it is no documented value')}"
        problems.append(Problem(cause, "set 0 (eager) or 1 (lazy), or unset it", blocking=False))
    return problems


def check_flag(lazy_mode: bool | None, environment: Mapping[str, str]) -> list[Problem]:
    """A flag --lazy_mode against the variable; a run refuses that too."""
    told = environment.get("PT_HPU_LAZY_MODE")
    if lazy_mode is None or told is None or lazy_mode == (told != "0"):
        return []
    cause = f"--lazy_mode {str(lazy_mode).lower()} and PT_HPU_LAZY_MODE={told} contradict each other"
    return [Problem(cause, "leave one of them out")]


def check_replaced_torch(torch_version: str | None, bridge: Release | None) -> list[Problem]:
    """A torch of another major.minor than the bridge was built for."""
    torch_release = read_release(torch_version)
    wanted = TORCH_OF_RELEASE.get(bridge) if bridge else None
    if bridge is None or wanted is None or torch_release in {None, wanted}:
        return []
    cause = (
        f"the bridge of software {show(bridge)} is built for torch {show(wanted)}, and torch {torch_version} is "
        "installed: pip replaced the vendor's torch"
    )
    remedy = "start from a fresh container, and install with PYTHON=$PYTHON make demo, which keeps its torch"
    return [Problem(cause, remedy)]


def check_driver(driver: str | None, bridge: Release | None) -> list[Problem]:
    """A driver of another release than the software."""
    release = read_release(driver)
    if release is None or bridge is None or release == bridge:
        return []
    cause = (
        f"the driver is {driver} and the bridge is of software {show(bridge)}: with different releases a run ends with "
        "'Device acquire failed' or hangs"
    )
    remedy = f"use the container of software {show(release)}, or install driver {show(bridge)} on the host"
    return [Problem(cause, remedy)]


IMPORT_CAUSES: tuple[tuple[str, str, str], ...] = (  # (in the message, cause, remedy); the first that is found
    (
        "No module named 'habana_frameworks'",
        "the bridge (habana_frameworks) is not installed in this Python",
        "start from a Gaudi container and use its $PYTHON; or use --device cuda or cpu",
    ),
    (
        "Stock PyTorch",
        "the bridge refuses a torch that is not the Gaudi build in lazy mode",
        "PT_HPU_LAZY_MODE=0 (--lazy_mode false), or the container's own torch",
    ),
    (
        "cannot open shared object file",
        "a library of the Gaudi software is missing",
        "start from a Gaudi container; outside of one install the software of the bridge's release",
    ),
    (
        "undefined symbol",
        "the bridge and torch are not of one build: pip replaced the vendor's torch",
        "start from a fresh container, and install with PYTHON=$PYTHON make demo, which keeps its torch",
    ),
    (
        "acquire",
        "the card could not be acquired: held by another process, or driver and software are of different releases",
        "end the process that holds it (see above), and compare the two releases",
    ),
)


def explain_import(message: str, known: Sequence[Problem] = ()) -> Problem:
    """Why the bridge cannot be imported.

    Args:
        message: The last line of the traceback, or how the process ended.
        known: Problems of torch and bridge that were found without importing; the first one explains it.
    """
    if known:
        return Problem(f"the bridge cannot be imported ({message}): {known[0].cause}", known[0].remedy)
    for text, cause, remedy in IMPORT_CAUSES:
        if text in message:
            return Problem(f"{cause} ({message})", remedy)
    cause = f"the bridge is installed and cannot be imported: {message}"
    return Problem(cause, "compare torch, bridge and driver above with one release of the vendor's list")
