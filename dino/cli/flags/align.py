"""Flags: comparing two devices."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # ComparisonConfig
    "reference": Spec("device to compare with, in fp32"),
    "steps": Spec("steps of training that both make"),
    "tolerance": Spec(
        "largest difference that still counts as equal, over a tensor's largest number where that is above 1"
    ),
}
