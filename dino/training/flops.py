"""Floating point operations of a step, and how many a device does in large matrix products."""

from __future__ import annotations

import contextlib
import time

import torch

from dino.devices.base import Device
from dino.devices.untyped import run_backward
from dino.models.multicrop import MultiCrop
from dino.models.registry import is_vit
from dino.training.build import build_network, build_recipe
from dino.training.config import TrainConfig

PRODUCTS = (2048, 8192)  # side of the matrices in the speed test; fast devices use the second
FAST = 0.005  # seconds; a device is fast if the first product takes no longer
FLOP_IMAGES = 2  # batch size for counting operations; batch norm of a single image has no variance


def count_flops(config: TrainConfig) -> float:
    """Return the floating point operations per image of a step, counted on torch's meta device."""
    # Imported here because the torch that PopTorch needs lacks it (and has no dry run).
    from torch.utils.flop_counter import FlopCounterMode

    student = _build_on_meta(config, norm_last_layer=config.student.norm_last_layer)
    teacher = _build_on_meta(config, norm_last_layer=True).requires_grad_(False)
    recipe = build_recipe(config)
    sizes = [(2, recipe.global_size), (recipe.local_views, recipe.local_size)]
    views = [
        torch.empty(count * FLOP_IMAGES, recipe.channels, side, side, device="meta")
        for count, side in sizes
        if count
    ]
    with FlopCounterMode(display=False) as counter:
        _, vectors = teacher(views[0])
        teacher.head.last_layer(vectors)
        _, vectors = student(*views)
        # Our own loss computes more than the formula.
        run_backward(student.head.last_layer(vectors).sum())
    flops: int = counter.get_total_flops()
    return flops / FLOP_IMAGES


def _build_on_meta(config: TrainConfig, *, norm_last_layer: bool) -> MultiCrop:
    """Build a network without content; one of ours draws no weights then, which takes a while."""
    ours = is_vit(config.backbone.chosen_arch)
    with torch.device("meta") if ours else contextlib.nullcontext():
        network = build_network(config, drop_path_rate=0.0, norm_last_layer=norm_last_layer)
    return network.to("meta")


def measure_matmul(device: Device) -> float:
    """Return FLOP/s of the product of two large matrices in the device's number format."""
    seconds = _time_product(device, PRODUCTS[0])
    if seconds > FAST:
        return 2 * PRODUCTS[0] ** 3 / seconds
    return 2 * PRODUCTS[1] ** 3 / _time_product(device, PRODUCTS[1])


def _time_product(device: Device, side: int) -> float:
    """Return the seconds of the fastest of five products."""
    # Equal numbers would draw less power.
    left = torch.randn(side, side, device=device.torch_device)
    with torch.no_grad(), device.autocast():
        dtype = torch.mm(left[:1], left).dtype  # the type that autocast or an op list chooses
    left, seconds = left.to(dtype), []
    for _ in range(6):
        device.synchronize()
        began = time.perf_counter()
        torch.mm(left, left)
        device.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
