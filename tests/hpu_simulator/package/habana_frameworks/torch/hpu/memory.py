"""Memory statistics of the simulated card."""

from .._simulated import device as _device

_LIMIT = 96 * 2**30


def memory_stats(device=None):
    """Everything, under the bridge's names."""
    return {"Limit": _LIMIT, **_device.memory_stats()}


def memory_allocated(device=None):
    """Bytes in use."""
    return memory_stats()["InUse"]


def max_memory_allocated(device=None):
    """Most bytes in use so far."""
    return memory_stats()["MaxInUse"]


def memory_reserved(device=None):
    """Bytes of the card."""
    return _LIMIT


def max_memory_reserved(device=None):
    """Bytes of the card."""
    return _LIMIT


def mem_get_info(device=None):
    """Bytes free and in all."""
    return _LIMIT - memory_allocated(), _LIMIT


def reset_peak_memory_stats(device=None):
    """Start the peak anew."""
    _device.reset_peak()


def reset_accumulated_memory_stats(device=None):
    """Counters are not reset here."""
