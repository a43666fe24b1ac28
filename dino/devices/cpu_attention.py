"""Attention in bfloat16 on the CPU with a backward pass in float32.

The backward pass of torch's flash kernel for CPUs takes three to six times as long in bfloat16 as
in float32 (torch 2.15, AMX). The forward pass is equally fast in both. The smaller type is useful
only there: it saves memory that is kept for the backward pass.
Shapes: B images, h heads, N tokens, d width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.devices.untyped import (
    close_kernels,
    flash_attention_enabled,
    open_kernels,
    replace_kernel,
)

KEY = "AutocastCPU"


class _WideBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend; all tensors are (B, h, N, d)."""
        mixed: Tensor
        mixed, log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value
        )
        ctx.save_for_backward(query, key, value, mixed, log_sums)
        return mixed

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, ...]:
        *narrow, log_sums = ctx.saved_tensors
        wide = [part.float() for part in (upstream, *narrow)]
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *wide, log_sums, 0.0, False
        )
        return tuple(gradient.to(upstream.dtype) for gradient in gradients)


@functools.cache
def widen_backward() -> torch.library.Library:
    """Replace scaled_dot_product_attention under bfloat16 autocast on the CPU, process-wide."""
    kernels = open_kernels()
    replace_kernel(kernels, "scaled_dot_product_attention", _attend, KEY)
    return kernels


def restore_attention() -> None:
    """Restore torch's own attention if it was replaced."""
    if widen_backward.cache_info().currsize:
        close_kernels(widen_backward())
        widen_backward.cache_clear()


def _attend(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
    dtype = torch.get_autocast_dtype("cpu")
    cast = [
        tensor if tensor.dtype == torch.float64 else tensor.to(dtype)
        for tensor in (query, key, value)
    ]
    torch_attention: Callable[..., Tensor] = F.scaled_dot_product_attention
    plain = not rest and all(option is None or option is False for option in options.values())
    with torch.autocast("cpu", enabled=False):
        if not plain or not _fits(*cast):
            attended: Tensor = torch_attention(*cast, *rest, **options)
            return attended
        mixed: Tensor = _WideBackward.apply(*cast)
        return mixed


def _fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel accepts these tensors; it does not check, and torch handles the others."""
    return (
        query.dim() == key.dim() == 4
        and key.shape == value.shape
        and query.shape[:2] == key.shape[:2]
        and query.shape[-1] == key.shape[-1]
        and all(
            part.dtype == torch.bfloat16 and part.numel() and part.stride(-1) == 1
            for part in (query, key, value)
        )
        and flash_attention_enabled()
    )
