"""What becomes `torch.hpu`."""

from __future__ import annotations

import os

import torch

from .. import _simulated
from .._simulated import device as _device
from . import memory, metrics, random
from .memory import (
    max_memory_allocated,
    max_memory_reserved,
    mem_get_info,
    memory_allocated,
    memory_reserved,
    memory_stats,
    reset_accumulated_memory_stats,
    reset_peak_memory_stats,
)
from .random import (
    get_rng_state,
    get_rng_state_all,
    initial_seed,
    manual_seed,
    manual_seed_all,
    seed,
    seed_all,
    set_rng_state,
    set_rng_state_all,
)

__all__ = [
    "current_device",
    "device",
    "device_count",
    "device_of",
    "get_device_name",
    "get_rng_state",
    "get_rng_state_all",
    "init",
    "initial_seed",
    "is_available",
    "is_bf16_supported",
    "is_initialized",
    "manual_seed",
    "manual_seed_all",
    "max_memory_allocated",
    "max_memory_reserved",
    "mem_get_info",
    "memory",
    "memory_allocated",
    "memory_reserved",
    "memory_stats",
    "metrics",
    "random",
    "reset_accumulated_memory_stats",
    "reset_peak_memory_stats",
    "seed",
    "seed_all",
    "set_device",
    "set_rng_state",
    "set_rng_state_all",
    "synchronize",
]


def _lazy_init():
    """Nothing to start."""


def _is_in_bad_fork():
    return False


def init():
    """Nothing to start."""


def is_initialized():
    """Always."""
    return True


def is_available():
    """Always."""
    return True


def is_bf16_supported():
    """Always."""
    return is_available()


def device_count():
    """Of the host, one unless HPU_SIMULATOR_CARDS says more; a process has one of them."""
    return int(os.environ.get("HPU_SIMULATOR_CARDS", "1"))


def current_device():
    """Number of the only card."""
    return 0


def set_device(device):
    """Choose the only card."""
    index = (
        torch.device(device).index if isinstance(device, str) else getattr(device, "index", device)
    )
    if index:
        raise AssertionError(f"hpu: invalid device index {index}, a process has one device")


class device:  # noqa: N801 - torch's name for it
    """Choose the only card within a block."""

    def __init__(self, device):
        """Check the card's number."""
        if device not in (None, -1):
            set_device(device)

    def __enter__(self):
        """Nothing to switch."""

    def __exit__(self, type, value, traceback):
        """Nothing to switch back."""


class device_of(device):  # noqa: N801 - torch's name for it
    """The same for a tensor's card."""

    def __init__(self, obj):
        """Check the card's number."""
        super().__init__(obj.device if obj.device.type == "hpu" else -1)


def get_device_name(device=None):
    """The chip."""
    return "GAUDI2"


def synchronize():
    """Cut the graph and wait."""
    _device.synchronize()


def _overwrite_torch():
    """Change torch's functions as the bridge does; once a process."""
    if hasattr(torch.manual_seed, "_of_hpu"):
        return
    seed_host = torch.manual_seed

    def seed_both(seed):
        if not _simulated.mode:
            _device.join("manual_seed")
        manual_seed_all(seed)
        return seed_host(seed)

    seed_both._of_hpu = True
    torch.manual_seed = torch.random.manual_seed = seed_both
