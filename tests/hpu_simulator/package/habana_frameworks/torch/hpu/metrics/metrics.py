"""Counters that a product reads to see compilations and fallbacks."""

from ..._simulated import device as _device
from ..._simulated import mode

_MICROSECONDS = 1000  # that one compilation is said to take


class Metric:
    """A counter since the start of the process."""

    def name(self):
        """Name it is asked for by."""
        raise NotImplementedError

    def stats(self):
        """List of (tag, value)."""
        raise NotImplementedError


class GraphCompilationMetric(Metric):
    """Compiled graphs; in eager mode the bridge emits none."""

    def name(self):
        """See the base."""
        return "graph_compilation"

    def stats(self):
        """See the base."""
        count = _device.graph_count() if mode else 0
        return [
            ("TotalNumber", count),
            ("TotalTime", count * _MICROSECONDS),
            ("AvgTime", _MICROSECONDS if count else 0),
        ]


class CpuFallbackMetric(Metric):
    """Operators that ran on the host."""

    def name(self):
        """See the base."""
        return "cpu_fallback"

    def stats(self):
        """See the base."""
        names = dict(_device.fallbacks())
        return [("TotalNumber", sum(names.values())), ("FallbackOps", names)]


_METRICS = {metric.name(): metric for metric in (GraphCompilationMetric(), CpuFallbackMetric())}


def metric_global(name):
    """The counter of that name, or None."""
    return _METRICS.get(name)
