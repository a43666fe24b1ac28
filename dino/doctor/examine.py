"""One examination a device: what the machine says, turned into a report."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dino.doctor import machine
from dino.doctor.cuda import check_cuda
from dino.doctor.environment import OP_LISTS, check_modules, describe_variables, examine_op_lists, read_modules
from dino.doctor.hl_smi import (
    QUERY,
    Card,
    Holder,
    check_cards,
    describe_cards,
    describe_holders,
    find_driver,
    holders_of_files,
    parse_query,
    parse_table,
)
from dino.doctor.report import Fact, Problem, Report
from dino.doctor.software import (
    Release,
    check_driver,
    check_flag,
    check_mode,
    check_replaced_torch,
    check_torch,
    describe_mode,
    explain_import,
    is_fork,
    read_release,
)

BRIDGE_PACKAGES = ("habana-torch-plugin", "habana_torch_plugin")
LOADER_PACKAGES = ("habana-torch-dataloader", "habana_torch_dataloader")


class Case(NamedTuple):
    """What an examination starts from.

    Attributes:
        environment: Of the run the user has in mind.
        lazy_mode: The flag, None where it was not given.
        probed: What torch said about itself; empty where it cannot be imported.
    """

    environment: Mapping[str, str]
    lazy_mode: bool | None = None
    probed: Mapping[str, Any] = {}


def choose(environment: Mapping[str, str]) -> tuple[str, str | None]:
    """The device that a command without --device takes, and why it could not be told (then it is the CPU)."""
    name, error = machine.probe(machine.CHOOSE, environment)
    return (name, None) if name in EXAMINATIONS else ("cpu", error or f"the answer was {name!r}")


def examine(device: str, case: Case) -> Report:
    """Examine one device (hpu, cuda, cpu or ipu); opens none."""
    version = machine.find_version("torch")
    report = Report(
        facts=[
            Fact("python", f"{platform.python_version()} ({sys.executable})"),
            Fact("torch", version or "not installed"),
            Fact("torchvision", machine.find_version("torchvision") or "not installed"),
        ],
        problems=check_torch(version),
    )
    if version is not None:
        answer, error = machine.probe(machine.TORCH, case.environment, _op_names(case.environment))
        case = case._replace(probed=answer if isinstance(answer, dict) else {})
        if error is not None:
            cause = f"torch is installed and cannot compute on the CPU: {error}"
            report.problems.append(Problem(cause, "repair the installation of torch; make clean, then make demo"))
    EXAMINATIONS[device](report, case)
    return report


def _examine_cpu(report: Report, _case: Case) -> None:
    report.facts.append(Fact("cores", f"{len(os.sched_getaffinity(0))} for this process, {os.cpu_count()} in all"))


def _examine_cuda(report: Report, case: Case) -> None:
    words = ("nvidia-smi", "--query-gpu=index,name,driver_version,memory.total", "--format=csv,noheader")
    smi = machine.run_tool(words, seconds=machine.TOOL_SECONDS)
    gpus = [line.strip() for line in smi.text.splitlines() if line.strip()] if smi.error is None else []
    report.facts += [
        Fact("nvidia-smi", smi.error or f"{len(gpus)} GPUs"),
        *(Fact("gpu", line) for line in gpus),
        Fact("cuda of torch", str(case.probed.get("cuda") or "none")),
        Fact("GPUs of torch", str(case.probed.get("count", "unknown"))),
    ]
    if case.probed:
        report.problems += check_cuda(case.probed, "\n".join(gpus) or None, case.environment)


def _examine_ipu(report: Report, _case: Case) -> None:
    version = machine.find_version("poptorch")
    report.facts.append(Fact("poptorch", version or "not installed"))
    if version is None:
        cause = "--device ipu needs PopTorch of the Poplar SDK, which is not installed"
        report.problems.append(
            Problem(cause, "enable the Poplar SDK and install its poptorch, or use another --device")
        )


def _examine_hpu(report: Report, case: Case) -> None:
    environment = case.environment
    bridge = _examine_bridge(report, _complete(case))
    driver = _examine_cards(report, environment)
    report.facts.append(Fact("mode", describe_mode(_complete(case), bridge)))
    unknown = set(case.probed.get("unknown", ()))
    facts, problems = examine_op_lists(
        environment, machine.read_text, lambda names: [name for name in names if name in unknown]
    )
    report.facts += [*facts, *describe_variables(environment)]
    report.problems += [
        *check_flag(case.lazy_mode, environment),
        *check_driver(driver, bridge),
        *check_modules(environment),
        *problems,
    ]


def _complete(case: Case) -> Mapping[str, str]:
    """The environment as the flag completes it."""
    asked = {} if case.lazy_mode is None else {"PT_HPU_LAZY_MODE": str(int(case.lazy_mode))}
    return {**asked, **case.environment}


def _examine_bridge(report: Report, environment: Mapping[str, str]) -> Release | None:
    """Facts about the bridge and its torch; gives its release where its package tells."""
    torch_version, version = machine.find_version("torch") or "", machine.find_version(*BRIDGE_PACKAGES)
    release = read_release(version)
    name, error = machine.probe(machine.BRIDGE, environment)
    state = "can be imported" if name else "cannot be imported"
    report.facts += [
        Fact("torch build", "the vendor's" if is_fork(torch_version) else "not the vendor's"),
        Fact("bridge", f"{version or 'not installed as a package'}, {state}"),
        Fact("bridge's loader", machine.find_version(*LOADER_PACKAGES) or "not installed"),
    ]
    found = [*check_replaced_torch(torch_version, release), *check_mode(environment, release, torch_version)]
    blocking = [problem for problem in found if problem.blocking]
    if error is not None:
        report.problems.append(explain_import(error, blocking))
        found = [problem for problem in found if problem not in blocking[:1]]
    report.problems += found
    return release


def _examine_cards(report: Report, environment: Mapping[str, str]) -> str | None:
    """Facts and problems of driver, cards and their holders; gives the driver's version."""
    query = machine.run_tool(("hl-smi", "-Q", ",".join(QUERY), "-f", "csv"), seconds=machine.TOOL_SECONDS)
    table = query if query.error == "not found" else machine.run_tool(("hl-smi",), seconds=machine.TOOL_SECONDS)
    listed, holders = parse_table(table.text)
    cards = parse_query(query.text) or listed
    files = machine.list_device_files()
    holders = holders or holders_of_files(machine.list_open_files())
    driver = find_driver(cards, table.text)
    report.facts += [
        Fact("hl-smi", table.error or ("works" if cards else "works, output not understood")),
        Fact("driver", driver or "unknown"),
        Fact("cards", str(len(cards) or len(files) or "none found")),
        *(Fact("card", line) for line in describe_cards(cards)),
        *([] if cards else [Fact("card", path) for path in files]),
        Fact("held by", describe_holders(holders) or "nobody that can be seen from here"),
    ]
    report.problems += _check_presence(cards, files, table) + _check_holders(cards, files, holders, environment)
    return driver


def _check_presence(cards: list[Card], files: list[str], table: machine.Outcome) -> list[Problem]:
    state = f"hl-smi: {table.error or 'it works, but its output is not understood'}"
    if cards:
        return []
    if files:
        cause = f"{state}; driver release and module numbers could not be checked"
        return [Problem(cause, "run hl-smi yourself; on the host, if this container lacks it", blocking=False)]
    cause = f"no cards are visible here ({state}; no device files /dev/accel/accel* or /dev/hl*)"
    remedy = "start the container with --runtime=habana and HABANA_VISIBLE_DEVICES=all; on the host load the driver"
    return [Problem(cause, remedy)]


def _check_holders(
    cards: list[Card], files: list[str], holders: list[Holder], environment: Mapping[str, str]
) -> list[Problem]:
    present = cards or [Card(index=number, name=path) for number, path in enumerate(files)]
    return check_cards(present, holders, read_modules(environment))


def _op_names(environment: Mapping[str, str]) -> list[str]:
    """Every name in the op lists that are set and readable, for torch to look up."""
    names: list[str] = []
    for variable in OP_LISTS:
        try:
            names += [line.strip() for line in machine.read_text(environment[variable]).split("\n") if line.strip()]
        except (KeyError, OSError, UnicodeDecodeError):
            continue
    return names


EXAMINATIONS: Mapping[str, Callable[[Report, Case], None]] = {
    "hpu": _examine_hpu,
    "cuda": _examine_cuda,
    "cpu": _examine_cpu,
    "ipu": _examine_ipu,
}
