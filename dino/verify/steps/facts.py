"""Describes the machine: the doctor's findings, versions, variables, processor and memory."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from dino.devices.hpu.software import find_version
from dino.doctor.examine import Case, examine
from dino.verify.base import FAIL, PASS, Bench, Finding, Result, Setting, Variant, accept
from dino.verify.scrub import show_value

TITLE = "facts"
PACKAGES = (
    *(
        "torch",
        "torchvision",
        "torchaudio",
        "timm",
        "numpy",
        "pillow",
        "av",
        "opencv-python",
        "opencv-python-headless",
    ),
    *(
        "tensorboard",
        "triton",
        "habana-torch-plugin",
        "habana-torch-dataloader",
        "habana-media-loader",
        "dino-reference",
    ),
)
PREFIXES = (
    "PT_",
    "HABANA_",
    "HLS_",
    "HCCL_",
    "GC_",
    "SLURM_",
    "OMP_",
    "TORCH",
    "PYTORCH_",
    "CUDA_",
    "NCCL_",
    "LAZY_",
)


def list_variants(setting: Setting) -> Sequence[Variant]:
    """Return one variant, which opens no device itself."""
    return [Variant(label="machine", options={"device": setting.device})]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Ask the doctor and the system."""
    bench.say("asking the doctor")
    # The next step tries the product.
    report = examine(str(variant.options["device"]), Case(os.environ, product="later"))
    return {
        **report.as_dict(),
        "versions": {name: version for name in PACKAGES if (version := find_version(name))},
        "variables": describe_variables(os.environ),
        "host": describe_host(),
    }


def describe_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the software reads; values only if they identify nobody."""
    return {
        name: show_value(environment[name])
        for name in sorted(environment)
        if name.startswith(PREFIXES)
    }


def describe_host() -> dict[str, Any]:
    """Return processor, memory (bytes) and system."""
    return {
        "cores": os.cpu_count(),
        "cores of this process": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Fail if the doctor says that the device cannot run."""
    findings = []
    for result in results:
        figures = result.figures or {}
        problems = sorted(figures.get("problems", ()), key=lambda each: not each["blocking"])
        versions = figures.get("versions", {})
        cores = figures["host"]["cores of this process"]
        summary = f"torch {versions.get('torch', 'not installed')}, {cores} cores"
        if problems and problems[0]["blocking"]:
            findings.append(accept(result, FAIL, problems[0]["cause"], problems[0]["remedy"]))
            continue
        if problems:
            summary += f", {len(problems)} note{'s' * (len(problems) > 1)} from the doctor"
        findings.append(accept(result, PASS, summary))
    return findings
