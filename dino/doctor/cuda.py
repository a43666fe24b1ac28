"""Explains why torch sees no GPU. Pure: texts in, findings out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dino.doctor.report import Problem


def check_cuda(
    probe: Mapping[str, Any], smi: str | None, environment: Mapping[str, str]
) -> list[Problem]:
    """Return no problem if torch sees a GPU, else the likeliest reason.

    Args:
        probe: `cuda` (the version torch was built for, or None), `available` and `count`, as
            torch reports them.
        smi: GPU lines that nvidia-smi printed; None if it is missing or failed.
        environment: Environment of the run.
    """
    if probe.get("available"):
        return []
    seen = "nvidia-smi works" if smi else "nvidia-smi is missing or fails"
    if not probe.get("cuda"):
        cause = f"this torch was built without CUDA ({seen})"
        return [Problem(cause, "install a CUDA build of torch, or use --device cpu")]
    chosen = environment.get("CUDA_VISIBLE_DEVICES")
    if smi and chosen is not None:
        cause = (
            f"torch finds no GPU although {seen}: CUDA_VISIBLE_DEVICES={chosen!r} hides all GPUs "
            "or names none that exist"
        )
        return [Problem(cause, "unset it, or name GPUs that nvidia-smi lists")]
    if smi:
        cause = (
            f"torch finds no GPU although {seen}: the driver is probably too old for "
            f"CUDA {probe['cuda']}"
        )
        return [Problem(cause, "update the driver, or install a torch for an older CUDA")]
    cause = (
        f"torch (for CUDA {probe['cuda']}) finds no GPU, and {seen}: there is no driver, or this "
        "container was given no GPU"
    )
    return [
        Problem(cause, "install the driver, start the container with GPUs, or use --device cpu")
    ]
