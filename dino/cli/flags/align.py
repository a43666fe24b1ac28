"""Flags: comparing two devices."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # ComparisonConfig
    "reference": Spec("device to compare with, in fp32"),
    "steps": Spec("training steps on each device"),
    "tolerance": Spec(
        "largest difference that counts as equal, divided by a tensor's largest number if that is "
        "above 1"
    ),
}
