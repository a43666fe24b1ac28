"""Checks the host's setup for cards: kernel, huge pages, firmware, folders. Texts in, findings out.

Sources: the vendor's installation guide for the kernel parameters; public reports for the rest
(docs/gaudi.md, Host). None of these findings blocks: the product on the card decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from dino.devices.hpu.software import Release, read_release
from dino.doctor.report import Fact, Problem

PASSTHROUGH_SINCE: Release = (6, 8)  # the guide requires it from this kernel on

# Variables of the vendor's loader, their value in its containers, and the symptom if they are
# unset.
LOADER: Mapping[str, tuple[str, str]] = {
    "GC_KERNEL_PATH": (
        "/usr/lib/habanalabs/libtpc_kernels.so",
        "'Graph compile failed' with synStatus 26",
    ),
    "HABANA_PLUGINS_LIB_PATH": ("/opt/habanalabs/habana_plugins", "missing plugins"),
    "HABANA_SCAL_BIN_PATH": ("/opt/habanalabs/engines_fw", "missing engine firmware"),
}
LOGS = "/var/log/habana_logs"  # where the containers point HABANA_LOGS


def check_kernel(release: str, command: str, processor: str) -> list[Problem]:
    """Report missing kernel parameters without which newer kernels garble transfers to the card.

    Args:
        release: Content of /proc/sys/kernel/osrelease.
        command: Content of /proc/cmdline.
        processor: Content of /proc/cpuinfo.
    """
    words = command.split()
    kernel = read_release(release)
    if kernel is None or kernel < PASSTHROUGH_SINCE:
        return []
    missing = [] if {"iommu=pt", "iommu.passthrough=1"} & set(words) else ["iommu=pt"]
    if "AuthenticAMD" not in processor and "intel_iommu=on" not in words:
        missing.append("intel_iommu=on")
    if not missing:
        return []
    cause = (
        f"{' '.join(missing)} is not among the parameters of kernel {release}: from 6.8 on the "
        "vendor requires IOMMU passthrough, and without it numbers are garbled"
    )
    remedy = (
        "on the host add it to GRUB_CMDLINE_LINUX in /etc/default/grub, run update-grub and "
        "reboot; "
        "on a virtual machine the parameters of its host count"
    )
    return [Problem(cause, remedy, blocking=False)]


def check_huge_pages(memory: str) -> tuple[list[Fact], list[Problem]]:
    """Report the host's huge pages, from the text of /proc/meminfo."""
    numbers = {
        name: int(number) for name, number in re.findall(r"^(\w+):\s+(\d+)", memory, re.MULTILINE)
    }
    total = numbers.get("HugePages_Total")
    if total is None:
        return [], []
    size, free = numbers.get("Hugepagesize", 0), numbers.get("HugePages_Free", 0)
    facts = [Fact("huge pages", f"{total} of {size} kB, {free} free")]
    if total:
        return facts, []
    cause = (
        "no huge pages are reserved (HugePages_Total is 0): the vendor's setup reserves some for "
        "the card's software"
    )
    remedy = (
        "on the host run sysctl -w vm.nr_hugepages=N with N from the vendor's installation guide; "
        "a pod must also request them"
    )
    return facts, [Problem(cause, remedy, blocking=False)]


def check_loader(environment: Mapping[str, str], is_there: Callable[[str], bool]) -> list[Problem]:
    """Report loader variables that are unset or name missing paths, also in a list with colons."""
    problems = []
    unset = {name: usual for name, (usual, _) in LOADER.items() if not environment.get(name)}
    if unset:
        sign = "; ".join(f"without {name}: {LOADER[name][1]}" for name in unset)
        settings = [f"{name}={usual}" for name, usual in unset.items() if is_there(usual)]
        remedy = (
            f"export {' '.join(settings)}"
            if settings
            else "source /etc/profile.d/habanalabs.sh, or use the container"
        )
        verb = "is" if len(unset) == 1 else "are"
        cause = f"{', '.join(unset)} {verb} unset; the vendor's containers set it ({sign})"
        problems.append(Problem(cause, remedy, blocking=False))
    for name in LOADER.keys() - unset.keys():
        gone = [path for path in environment[name].split(":") if path and not is_there(path)]
        if gone:
            cause = f"{name} names {', '.join(gone)}, which does not exist: {LOADER[name][1]}"
            problems.append(
                Problem(
                    cause, f"set it to the path of this release, usually {LOADER[name][0]}", False
                )
            )
    return problems


def check_logs(
    environment: Mapping[str, str],
    is_there: Callable[[str], bool],
    may_write: Callable[[str], bool],
) -> list[Problem]:
    """Report a folder for the vendor's logs that this user cannot write to."""
    folder = environment.get("HABANA_LOGS")
    if folder is None and not is_there(LOGS):
        return []
    path = folder or LOGS
    if may_write(path):
        return []
    seen = (
        f"HABANA_LOGS={folder} is not"
        if folder is not None
        else f"HABANA_LOGS is unset, and {LOGS} is not"
    )
    cause = (
        f"{seen} writable for this user: hl-smi and the bridge fail if they cannot write their logs"
    )
    return [
        Problem(
            cause, "export HABANA_LOGS=/tmp/habana_logs, or another folder of yours", blocking=False
        )
    ]


def read_firmware(text: str) -> list[str]:
    """Return each card's flash firmware version, from the SPI lines of `hl-smi -L`."""
    return [
        version[1]
        for line in text.splitlines()
        if "SPI" in line and (version := re.search(r"(\d+\.\d+\.\d+)", line))
    ]


def check_firmware(versions: Sequence[str], driver: str | None) -> tuple[list[Fact], list[Problem]]:
    """Report firmware that differs between cards or is of an older release than the driver."""
    if not versions:
        return [Fact("firmware", "unknown: hl-smi -L names none in its lines with SPI")], []
    counts = {version: versions.count(version) for version in sorted(set(versions))}
    listed = ", ".join(
        f"{version} on {count} card{'s' * (count > 1)}" for version, count in counts.items()
    )
    facts = [Fact("firmware", f"{listed} (SPI)")]
    remedy = (
        "ask the host's administrator to update it to the driver's release with the vendor's "
        "hl-fw-loader"
    )
    if len(counts) > 1:
        return facts, [Problem(f"the cards' firmware differs: {listed}", remedy, blocking=False)]
    own, of_driver = read_release(versions[0]), read_release(driver)
    if own is None or of_driver is None or own >= of_driver:
        return facts, []
    cause = (
        f"the cards' firmware is {versions[0]} and the driver is {driver}: others use such a pair "
        "in "
        "public, and name it as a possible cause of failures"
    )
    return facts, [Problem(cause, remedy, blocking=False)]
