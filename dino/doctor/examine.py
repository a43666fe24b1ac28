"""Runs one examination per device and turns what the machine reports into a report."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Mapping

from dino.devices.hpu import software
from dino.doctor import machine
from dino.doctor.cuda import check_cuda
from dino.doctor.environment import OP_LISTS
from dino.doctor.gaudi import examine_gaudi
from dino.doctor.report import Case, Fact, Problem, Report
from dino.doctor.software import check_owners, check_torch

__all__ = ["Case", "choose", "examine"]

OPENCV = r"opencv(-contrib)?-python(-headless)?"  # the packages that bring cv2


def choose(environment: Mapping[str, str]) -> tuple[str, str | None]:
    """Return the default device, and an error if it cannot be determined (then it is "cpu")."""
    name, error = machine.probe(machine.CHOOSE, environment)
    return (name, None) if name in EXAMINATIONS else ("cpu", error or f"the answer was {name!r}")


def examine(device: str, case: Case) -> Report:
    """Examine hpu, cuda, cpu or ipu; only a Gaudi card is opened, in a child process."""
    version = software.find_version("torch")
    report = Report(
        facts=[
            Fact("python", f"{platform.python_version()} ({sys.executable})"),
            Fact("torch", version or "not installed"),
            Fact("torchvision", software.find_version("torchvision") or "not installed"),
        ],
        problems=check_torch(version) + check_owners(machine.list_distributions(OPENCV)),
    )
    if version is not None:
        answer, error = machine.probe(machine.TORCH, case.environment, _op_names(case.environment))
        case = case._replace(probed=answer if isinstance(answer, dict) else {})
        if error is not None:
            cause = f"torch is installed but cannot compute on the CPU: {error}"
            report.problems.append(
                Problem(cause, "repair the installation of torch; make clean, then make demo")
            )
    EXAMINATIONS[device](report, case)
    return report


def _examine_cpu(report: Report, _case: Case) -> None:
    report.facts.append(
        Fact("cores", f"{len(os.sched_getaffinity(0))} for this process, {os.cpu_count()} in total")
    )


def _examine_cuda(report: Report, case: Case) -> None:
    words = (
        "nvidia-smi",
        "--query-gpu=index,name,driver_version,memory.total",
        "--format=csv,noheader",
    )
    smi = machine.run_tool(words, seconds=machine.TOOL_SECONDS)
    gpus = (
        [line.strip() for line in smi.text.splitlines() if line.strip()]
        if smi.error is None
        else []
    )
    report.facts += [
        Fact("nvidia-smi", smi.error or f"{len(gpus)} GPUs"),
        *(Fact("gpu", line) for line in gpus),
        Fact("cuda of torch", str(case.probed.get("cuda") or "none")),
        Fact("GPUs of torch", str(case.probed.get("count", "unknown"))),
    ]
    if case.probed:
        report.problems += check_cuda(case.probed, "\n".join(gpus) or None, case.environment)


def _examine_ipu(report: Report, _case: Case) -> None:
    version = software.find_version("poptorch")
    report.facts.append(Fact("poptorch", version or "not installed"))
    if version is None:
        cause = "--device ipu needs PopTorch from the Poplar SDK, but it is not installed"
        report.problems.append(
            Problem(
                cause, "enable the Poplar SDK and install its poptorch, or use another --device"
            )
        )


def _op_names(environment: Mapping[str, str]) -> list[str]:
    """Return every name in the readable op lists, for torch to look up."""
    names: list[str] = []
    for variable in OP_LISTS:
        try:
            names += [
                line.strip()
                for line in machine.read_text(environment[variable]).split("\n")
                if line.strip()
            ]
        except (KeyError, OSError, UnicodeDecodeError):
            continue
    return names


EXAMINATIONS: Mapping[str, Callable[[Report, Case], None]] = {
    "hpu": examine_gaudi,
    "cuda": _examine_cuda,
    "cpu": _examine_cpu,
    "ipu": _examine_ipu,
}
