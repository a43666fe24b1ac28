"""Checks versions of torch, bridge and driver, and the execution mode. Texts in, findings out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dino.devices.hpu.mode import Mode, choose_mode
from dino.devices.hpu.software import TORCH_OF_RELEASE, Release, is_vendor_torch, read_release
from dino.doctor.report import Problem
from dino.errors import DinoError

TORCH_FLOOR: Release = (2, 5)  # as in requirements-torch.txt
# The first release known to check torch's local version in every mode.
LINE_124: Release = (1, 24)

FRESH = (
    "start from a fresh container, and install with PYTHON=$PYTHON make demo, which keeps its torch"
)
LAZY_ELSEWHERE = "--lazy_mode false (or PT_HPU_LAZY_MODE=0), or the container's own torch"

CONTAINERS_ONLY = (
    "containers train with it in public; installed next to other releases it ended with "
    "synStatus 26"
)
# Pairs of (software, driver) of different releases seen in public, and what is reported about them.
PAIRS: Mapping[tuple[Release, Release], str] = {
    ((1, 20), (1, 19)): "it was shown working in public",
    ((1, 21), (1, 20)): "it is in the documentation of a cloud provider",
    ((1, 22), (1, 20)): "it is in a distributor's list of images",
    ((1, 22), (1, 24)): CONTAINERS_ONLY,
    ((1, 23), (1, 24)): CONTAINERS_ONLY,
}


def show(*releases: Release) -> str:
    """Format releases: (2, 10), (2, 11) -> 2.10 or 2.11."""
    return " or ".join(".".join(map(str, release)) for release in releases)


def check_torch(version: str | None) -> list[Problem]:
    """Report a missing torch, or one older than this package supports."""
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
                "use a newer torch; on Gaudi that means the container of software 1.19 or later",
            )
        ]
    return []


def is_upstream_torch(version: str | None) -> bool:
    """Whether this is the upstream CPU build, by the bridge's rule: "cpu" in the local version."""
    return "cpu" in (version or "").partition("+")[2]


def describe_build(torch_version: str | None) -> str:
    """Return who built this torch and which modes it has."""
    if is_vendor_torch(torch_version):
        return "the vendor's: lazy, compiled and eager mode"
    if is_upstream_torch(torch_version):
        return "upstream's for the CPU: compiled and eager mode"
    return "neither the vendor's nor upstream's for the CPU"


def check_build(torch_version: str | None, bridge: Release | None) -> list[Problem]:
    """Report a torch of the wrong release or build for the bridge: pip replaced it."""
    supported = TORCH_OF_RELEASE.get(bridge, ()) if bridge else ()
    release = read_release(torch_version)
    if bridge is None or release is None:
        return []
    if supported and release not in supported:
        cause = (
            f"the bridge of software {show(bridge)} is built for torch {show(*supported)}, but "
            "torch "
            f"{torch_version} is installed: pip replaced the container's torch"
        )
        return [Problem(cause, FRESH)]
    if is_vendor_torch(torch_version) or (is_upstream_torch(torch_version) and bridge >= LINE_124):
        return []
    if bridge >= LINE_124:
        local = (torch_version or "").partition("+")[2]
        seen = (
            f"fails with +{local} (AssertionError)"
            if local
            else "fails without a local version (AttributeError)"
        )
        cause = (
            f"the bridge of software {show(bridge)} accepts the vendor's torch (+git, +hpu) or the "
            f"upstream CPU build (+cpu), and its import {seen} in every mode; torch "
            f"{torch_version} "
            "is installed: pip replaced the container's torch"
        )
        return [Problem(cause, FRESH)]
    cause = (
        f"software {show(bridge)} comes with the vendor's build of torch, but torch "
        f"{torch_version} "
        "is another build: pip replaced it, and lazy mode is gone"
    )
    return [Problem(cause, FRESH, blocking=False)]


def decide_mode(
    lazy_mode: bool | None,
    compiles: bool | None,
    environment: Mapping[str, str],
    torch_version: str | None,
) -> tuple[Mode | None, list[Problem]]:
    """Return the mode that a run takes, or None if it refuses, and the problems with it."""
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
        cause = (
            f"PT_HPU_LAZY_MODE={variable} is not for training: the documented values are 0 (eager) "
            "and 1 (lazy)"
        )
        problems.append(Problem(cause, "set 0 or 1, or unset it", blocking=False))
    return mode, problems


def check_lazy(mode: Mode | None, torch_version: str | None) -> list[Problem]:
    """Report lazy mode if this build of torch lacks it."""
    if mode is None or not mode.lazy or torch_version is None or is_vendor_torch(torch_version):
        return []
    cause = (
        f"lazy mode needs the vendor's build of torch, but torch {torch_version} is another build"
    )
    return [Problem(cause, LAZY_ELSEWHERE)]


def explain_refusal(error: DinoError | str, *, blocking: bool = True) -> Problem:
    """Turn a run's message of the form "cause; remedy" into a problem."""
    cause, _, remedy = str(error).rpartition("; ")
    return Problem(cause or str(error), remedy if cause else "see Modes in docs/gaudi.md", blocking)


def check_driver(
    driver: str | None, bridge: Release | None, *, product: bool | None
) -> list[Problem]:
    """Note a driver of another release than the software.

    It does not block: many pairs work, and the vendor supports some.

    Args:
        driver: Version of the driver.
        bridge: Release of the software.
        product: Whether the product on the card was correct; None if it was not tried.
    """
    release = read_release(driver)
    if release is None or bridge is None or release == bridge:
        return []
    said = PAIRS.get((bridge, release), "no public report of it was found")
    tried = {True: "was correct", False: "failed, see there", None: "was not tried"}[product]
    cause = (
        f"the driver is {driver} and the bridge is of software {show(bridge)}, so their releases "
        f"differ ({said}); the product on the card {tried}"
    )
    remedy = f"use the container of software {show(release)}, or driver {show(bridge)} on the host"
    when = "nothing to do while runs work; if one ends with synStatus 26 or Device acquire failed: "
    return [Problem(cause, (when if product else "") + remedy, blocking=False)]


def check_parts(parts: Mapping[str, str]) -> list[Problem]:
    """Report vendor Python packages, {name: version}, that are of several releases."""
    if len({read_release(version) for version in parts.values()} - {None}) < 2:
        return []
    listed = ", ".join(f"{name} {version}" for name, version in sorted(parts.items()))
    cause = (
        f"parts of the vendor's software are of several releases ({listed}): a mix is the known "
        "cause of synStatus 26"
    )
    remedy = "install all parts from one release, as the vendor's containers have them"
    return [Problem(cause, remedy, blocking=False)]


def check_owners(owners: Sequence[tuple[str, str, str]]) -> list[Problem]:
    """Report two packages that install the same module, cv2.

    Args:
        owners: Name, version and folder of each package.
    """
    if len(owners) < 2:
        return []
    listed = " and ".join(f"{name} {version}" for name, version, _ in owners)
    if len({folder for _, _, folder in owners}) == 1:
        cause = (
            f"{listed} both install cv2: the later one overwrote the other, and removing one "
            "breaks it"
        )
    else:
        cause = (
            f"{listed} both install cv2, in different folders: the first on sys.path hides the "
            "other"
        )
    names = " ".join(dict.fromkeys(name for name, _, _ in owners))
    remedy = f"keep one: pip uninstall -y {names}, then install opencv-python-headless alone"
    return [Problem(cause, remedy, blocking=False)]
