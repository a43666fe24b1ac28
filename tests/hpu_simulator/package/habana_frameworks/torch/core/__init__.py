"""Graph cuts."""

from .step_closure import add_step_closure, iter_mark_step, mark_step

__all__ = ["add_step_closure", "iter_mark_step", "mark_step"]
