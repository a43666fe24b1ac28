"""Schedules as float64 arrays with one value per iteration or epoch."""

from __future__ import annotations

import numpy as np

from dino.errors import OptionError


def compute_cosine(
    *, base: float, final: float, iterations: int, warmup: int = 0, warmup_start: float = 0.0
) -> np.ndarray:
    """Linear warm-up, then half a cosine from `base` to `final`.

    This is cosine_scheduler in the original's utils.py.

    Args:
        base: Value at the end of the warm-up.
        final: Value at the end of the cosine (reached one iteration after the last).
        iterations: Length of the whole schedule.
        warmup: Length of the linear part.
        warmup_start: First value of the linear part.

    Returns:
        (iterations,) float64.

    Raises:
        OptionError: The warm-up is longer than the run.
    """
    if warmup > iterations:
        raise OptionError(
            f"a warm-up of {warmup} iterations does not fit into a run of {iterations}"
        )
    steps = np.arange(iterations - warmup)
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * steps / max(len(steps), 1)))
    return np.concatenate([np.linspace(warmup_start, base, warmup), cosine])


def compute_teacher_temperature(
    *, start: float, final: float, warmup_epochs: int, epochs: int
) -> np.ndarray:
    """Temperature of each epoch: linear over the warm-up epochs, then constant.

    This is the schedule in DINOLoss of the original.

    Returns:
        (epochs,) float64.

    Raises:
        OptionError: The warm-up is longer than the run.
    """
    if warmup_epochs > epochs:
        raise OptionError(
            f"a temperature warm-up of {warmup_epochs} epochs does not fit into a run of {epochs}"
        )
    return np.concatenate(
        [np.linspace(start, final, warmup_epochs), np.full(epochs - warmup_epochs, final)]
    )
