"""Counters of the bridge."""

from .metrics import metric_global, metric_localcontext

__all__ = ["metric_global", "metric_localcontext"]
