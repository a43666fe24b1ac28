"""What the original implementation computes on fixed inputs; README.md beside this file says how each number was made.

Tests compare with them, and so does whoever wants to know what a machine computes.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import numpy as np


def load(name: str) -> dict[str, np.ndarray]:
    """Every array of one file, such as "loss", by its key.

    Raises:
        FileNotFoundError: There is no file of that name.
    """
    with (
        resources.files(__name__).joinpath(f"{name}.npz").open("rb") as file,
        np.load(file) as arrays,
    ):
        return {key: arrays[key] for key in arrays.files}


def load_settings() -> dict[str, Any]:
    """What goes with the arrays and is none: the ground truth of the ranking, which parameters decay."""
    settings: dict[str, Any] = json.loads(
        resources.files(__name__).joinpath("meta.json").read_text(encoding="utf-8")
    )
    return settings


def draw(key: int, *shape: int) -> np.ndarray:
    """The float32 input that the numbers call `draw(key, *shape)`: standard normal, by its key as the seed."""
    return np.random.RandomState(key).standard_normal(shape).astype(np.float32)
