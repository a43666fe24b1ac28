"""Counters that a product reads to see compilations and fallbacks."""

import contextlib

from ..._release import table as _table
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


class DevMemMetric(Metric):
    """Memory of the card, in later releases; its values are no list."""

    def name(self):
        """See the base."""
        return "device_memory"

    def stats(self):
        """See the base."""
        return dict(_device.memory_stats())


_METRICS = {metric.name(): metric for metric in (GraphCompilationMetric(), CpuFallbackMetric())}
if _table["has_memory_metric"]:
    _METRICS["device_memory"] = DevMemMetric()
_NotFound = type(_table["missing_metric"], (Exception,), {"__module__": __name__})
globals()[_NotFound.__name__] = _NotFound


def metric_global(name):
    """The counter of that name, or None."""
    return _METRICS.get(name)


class _Since(Metric):
    """A counter less what it was before."""

    def __init__(self, metric):
        self.name = metric.name
        self._metric, self._before = metric, dict(metric.stats())["TotalNumber"]

    def stats(self):
        """See the base."""
        return [("TotalNumber", dict(self._metric.stats())["TotalNumber"] - self._before)]


@contextlib.contextmanager
def metric_localcontext(name):
    """The counter of that name from the beginning of the block on; an error where there is none."""
    if name not in _METRICS:
        raise _NotFound(name)
    yield _Since(_METRICS[name])
