"""Cuts of the lazy graph and what runs after them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .._simulated import device
from ..utils.internal import lazy_only

_closures: list[tuple[Callable[..., object], tuple[Any, ...]]] = []


def _run_step_closures() -> None:
    waiting = list(_closures)
    _closures.clear()
    for closure, args in waiting:
        closure(*args)


@lazy_only
def add_step_closure(closure, args=()):
    """Run closure(*args) after the next cut."""
    _closures.append((closure, args))


@lazy_only
def mark_step(device_str="", sync=False):
    """Cut the graph."""
    device.flush("mark_step")
    _run_step_closures()


@lazy_only
def iter_mark_step(device_str=""):
    """Run the closures; cuts nothing."""
    _run_step_closures()
