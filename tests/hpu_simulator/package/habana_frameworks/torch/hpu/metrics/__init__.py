"""Counters of the bridge."""

from .metrics import metric_global

__all__ = ["metric_global"]
