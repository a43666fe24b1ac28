"""Versions of torch, bridge and driver, the execution mode, and what an import died of; texts in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dino.devices.hpu.mode import Mode, choose_mode
from dino.devices.hpu.software import TORCH_OF_RELEASE, Release, is_vendor_torch, read_release
from dino.doctor.report import Problem
from dino.errors import DinoError

TORCH_FLOOR: Release = (2, 5)  # as in requirements-torch.txt
LINE_124: Release = (
    1,
    24,
)  # the first release known to judge torch by its local version, in every mode

FRESH = (
    "start from a fresh container, and install with PYTHON=$PYTHON make demo, which keeps its torch"
)
LAZY_ELSEWHERE = "--lazy_mode false (or PT_HPU_LAZY_MODE=0), or the container's own torch"

# Pairs of (software, driver) of different releases that were met in public, and what was said of them.
PAIRS: Mapping[tuple[Release, Release], str] = {
    ((1, 20), (1, 19)): "it was shown at work in public",
    ((1, 21), (1, 20)): "it is in the documentation of a cloud provider",
    ((1, 22), (1, 20)): "it is in a distributor's list of images",
    (
        (1, 22),
        (1, 24),
    ): "containers train so in public; installed beside other releases it ended with synStatus 26",
    (
        (1, 23),
        (1, 24),
    ): "containers train so in public; installed beside other releases it ended with synStatus 26",
}


def show(*releases: Release) -> str:
    """(2, 10), (2, 11) -> 2.10 or 2.11."""
    return " or ".join(".".join(map(str, release)) for release in releases)


def check_torch(version: str | None) -> list[Problem]:
    """No torch, or one older than this package works with."""
    if version is None:
        cause = "torch is not installed in this Python"
        return [
            Problem(
                cause, "make demo installs it; in a Gaudi container use the container's own $PYTHON"
            )
        ]
    release = read_release(version)
    if release is not None and release < TORCH_FLOOR:
        cause = f"torch {version} is older than {show(TORCH_FLOOR)}, which this package needs"
        return [
            Problem(
                cause,
                "use a newer torch; on Gaudi that is software 1.19 or later, with its own container",
            )
        ]
    return []


def is_upstream_torch(version: str | None) -> bool:
    """Whether this is upstream's CPU build, by the bridge's own rule: the local version contains "cpu"."""
    return "cpu" in (version or "").partition("+")[2]


def describe_build(torch_version: str | None) -> str:
    """Whose build of torch this is, and which modes it has."""
    if is_vendor_torch(torch_version):
        return "the vendor's: lazy, compiled and eager mode"
    if is_upstream_torch(torch_version):
        return "upstream's for the CPU: compiled and eager mode"
    return "neither the vendor's nor upstream's for the CPU"


def check_build(torch_version: str | None, bridge: Release | None) -> list[Problem]:
    """A torch that is not of the bridge's release or of no build that it takes: pip replaced it."""
    wanted = TORCH_OF_RELEASE.get(bridge, ()) if bridge else ()
    release = read_release(torch_version)
    if bridge is None or release is None:
        return []
    if wanted and release not in wanted:
        cause = f"the bridge of software {show(bridge)} is built for torch {show(*wanted)}, and torch {torch_version} "
        return [Problem(f"{cause}is installed: pip replaced the container's torch", FRESH)]
    if is_vendor_torch(torch_version) or (is_upstream_torch(torch_version) and bridge >= LINE_124):
        return []
    if bridge >= LINE_124:
        local = (torch_version or "").partition("+")[2]
        seen = (
            f"with +{local} ends its import (AssertionError)"
            if local
            else "without either ends it (AttributeError)"
        )
        cause = (
            f"the bridge of software {show(bridge)} takes the vendor's torch (+git, +hpu) or upstream's for the CPU "
            f"(+cpu), and one {seen}, in every mode; torch {torch_version} is installed: pip replaced the container's"
        )
        return [Problem(cause, FRESH)]
    cause = f"software {show(bridge)} comes with the vendor's build of torch, and torch {torch_version} is not that one"
    return [Problem(f"{cause}: pip replaced it, and lazy mode went with it", FRESH, blocking=False)]


def decide_mode(
    lazy_mode: bool | None,
    compiles: bool | None,
    environment: Mapping[str, str],
    torch_version: str | None,
) -> tuple[Mode | None, list[Problem]]:
    """The mode that a run takes, or None where it refuses; and what is to be said of it."""
    variable = environment.get("PT_HPU_LAZY_MODE")
    try:
        mode = choose_mode(
            lazy_mode=lazy_mode, compiles=compiles, variable=variable, torch_version=torch_version
        )
    except DinoError as error:
        return None, [explain_refusal(error)]
    problems = []
    if mode.warning:
        problems.append(explain_refusal(mode.warning, blocking=False))
    if variable not in {None, "0", "1"}:
        cause = f"PT_HPU_LAZY_MODE={variable} is not for training: 0 (eager) and 1 (lazy) are its documented values"
        problems.append(Problem(cause, "set 0 or 1, or unset it", blocking=False))
    return mode, problems


def check_lazy(mode: Mode | None, torch_version: str | None) -> list[Problem]:
    """Lazy mode that this build of torch does not have."""
    if mode is None or not mode.lazy or torch_version is None or is_vendor_torch(torch_version):
        return []
    cause = f"lazy mode runs on the vendor's build of torch only, and torch {torch_version} is not that one"
    return [Problem(cause, LAZY_ELSEWHERE)]


def explain_refusal(error: DinoError | str, *, blocking: bool = True) -> Problem:
    """What a run says, as a problem: its lines are "cause; remedy"."""
    cause, _, remedy = str(error).rpartition("; ")
    return Problem(cause or str(error), remedy if cause else "see Modes in docs/gaudi.md", blocking)


def check_driver(
    driver: str | None, bridge: Release | None, *, product: bool | None
) -> list[Problem]:
    """A driver of another release than the software: a note, since many pairs work and the vendor promises some.

    Args:
        driver: Its version.
        bridge: Release of the software.
        product: Whether the product on the card was right; None where it was not tried.
    """
    release = read_release(driver)
    if release is None or bridge is None or release == bridge:
        return []
    said = PAIRS.get((bridge, release), "no public report of it was found")
    tried = {True: "was right", False: "failed, see there", None: "was not tried"}[product]
    cause = f"the driver is {driver} and the bridge is of software {show(bridge)}, a pair of two releases ({said}); "
    remedy = f"the container of software {show(release)}, or driver {show(bridge)} on the host"
    when = (
        "nothing to do while runs work; where one ends with synStatus 26 or Device acquire failed: "
    )
    return [
        Problem(
            f"{cause}the product on the card {tried}",
            (when if product else "") + remedy,
            blocking=False,
        )
    ]


def check_parts(parts: Mapping[str, str]) -> list[Problem]:
    """Python packages of the vendor's that are of several releases, {name: version}."""
    if len({read_release(version) for version in parts.values()} - {None}) < 2:
        return []
    listed = ", ".join(f"{name} {version}" for name, version in sorted(parts.items()))
    cause = f"parts of the vendor's software are of several releases ({listed}): a mix is the known cause of synStatus 26"
    return [Problem(cause, "install all of one release; a container has them so", blocking=False)]


def check_owners(owners: Sequence[tuple[str, str, str]]) -> list[Problem]:
    """Two packages that bring one module, cv2.

    Args:
        owners: Name, version and folder of each.
    """
    if len(owners) < 2:
        return []
    listed = " and ".join(f"{name} {version}" for name, version, _ in owners)
    if len({folder for _, _, folder in owners}) == 1:
        cause = f"{listed} both bring cv2: the one installed last wrote over the other, and removing one breaks it"
    else:
        cause = (
            f"{listed} both bring cv2, in different folders: the first on sys.path hides the other"
        )
    names = " ".join(dict.fromkeys(name for name, _, _ in owners))
    remedy = f"keep one: pip uninstall -y {names}, then install opencv-python-headless alone"
    return [Problem(cause, remedy, blocking=False)]
