"""Which mode this process is in."""

from __future__ import annotations

import functools
import logging

from .. import _simulated


def is_lazy():
    """Whether PT_HPU_LAZY_MODE was anything but 0 at import."""
    return _simulated.mode != 0


def lazy_only(func):
    """A function that does nothing in eager mode, and never returns anything."""
    if not is_lazy():
        logging.getLogger(__name__).warning(
            "Calling %s function does not have any effect.", func.__name__
        )

    @functools.wraps(func)
    def call(*args, **kwargs):
        if is_lazy():
            func(*args, **kwargs)

    return call
