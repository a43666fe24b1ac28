"""Importing it makes torch know the device, as with the bridge."""

import os

import torch

os.environ.setdefault("HABANA_PROFILE", "profile_api_light")
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"

from . import _simulated, core, hpu  # noqa: E402
from .distributed import hccl  # noqa: E402
from .dynamo.compile_backend import backends  # noqa: E402

__all__ = ["backends", "core", "hccl", "hpu"]

if not hasattr(torch, "hpu"):
    torch._register_device_module("hpu", hpu)
hpu._overwrite_torch()
_simulated.device.default_generator().manual_seed(torch.initial_seed() % 2**63)
