"""Results of the original implementation on fixed inputs; README.md in this folder documents each.

Tests and `dino verify` compare against them.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np


def load(name: str) -> dict[str, np.ndarray]:
    """Load all arrays of one file, such as "loss", by key.

    Raises:
        FileNotFoundError: There is no file with that name.
    """
    with (
        resources.files(__name__).joinpath(f"{name}.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return {key: arrays[key] for key in arrays.files}


def load_settings() -> dict[str, Any]:
    """Load the non-array settings: ranking ground truth and which parameters decay."""
    settings: dict[str, Any] = json.loads(
        resources.files(__name__).joinpath("meta.json").read_text(encoding="utf-8")
    )
    return settings


def draw(key: int, *shape: int) -> np.ndarray:
    """The float32 input written as `draw(key, *shape)`: standard normal, with `key` as the seed."""
    return np.random.RandomState(key).standard_normal(shape).astype(np.float32)
