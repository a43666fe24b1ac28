"""The phases of the product's training step, told to the recorder from outside; the product knows
nothing of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .recorder import enter_phase, phase

PHASES = ("inputs", "augmentation", "teacher", "student", "loss", "exchange", "backward", "update")


def mark_phases() -> None:
    """Mark them in this process, for every program and step made from now on."""
    from dino.devices.eager import EagerStep
    from dino.training import step

    build = step.DinoProgram.__init__

    def build_marked(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.enter = enter_phase

    step.DinoProgram.__init__ = build_marked
    for owner, function, name in (
        (EagerStep, "__call__", "inputs"),  # which ends the last phase, too
        (step.DinoProgram, "begin_average", "exchange"),
    ):
        setattr(owner, function, _mark(getattr(owner, function), name))


def _mark(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with phase(name):
            return function(*args, **kwargs)

    return marked
