"""The phases of the product's training step, told to the recorder from outside; the product knows
nothing of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .recorder import enter_phase, phase


class _Marked:
    """A network whose calls are a phase; in all else it is the network itself."""

    def __init__(self, network: Any, name: str) -> None:
        self._network, self._name = network, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with phase(self._name):
            return self._network(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)


PHASES = {  # as the step tells them: as they are counted
    "augmentation": "augment",
    "teacher": "targets",
    "student": "targets",
    "loss": "loss",
    "backward": "backward",
    "clipping and optimizer": "clip",
    "teacher's update": "meters",
}


def mark_phases() -> None:
    """Mark them in this process, for every program and step made from now on."""
    from dino.devices.eager import EagerStep
    from dino.training import step
    from dino.training.optim import MaskedOptimizer

    build = step.DinoProgram.__init__

    def build_marked(self: Any, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        self.student, self.teacher = (
            _Marked(self.student, "student"),
            _Marked(self.teacher, "teacher"),
        )
        self.enter = lambda name: enter_phase(PHASES[name])

    step.DinoProgram.__init__ = build_marked
    for owner, function, name in (
        (EagerStep, "__call__", "inputs"),  # which ends the last phase, too
        (step.DinoProgram, "begin_average", "exchange"),
        (MaskedOptimizer, "step", "optimizer"),
        (step, "update_teacher", "ema"),
    ):
        setattr(owner, function, _mark(getattr(owner, function), name))


def _mark(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    @functools.wraps(function)
    def marked(*args: Any, **kwargs: Any) -> Any:
        with phase(name):
            return function(*args, **kwargs)

    return marked
