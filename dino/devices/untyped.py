"""Typed wrappers for functions that torch leaves untyped, private ones included.

A type checker accepts any use of an untyped function; with these wrappers it checks the callers.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.nn import functional

# The sum over all processes; gradients flow through it.
all_reduce: Callable[[Tensor], Tensor] = functional.all_reduce


def build_stream() -> torch.cuda.Stream:
    """Build a stream next to the computing one."""
    build: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
    return build()


def run_backward(loss: Tensor) -> None:
    """Compute the gradients of a loss ()."""
    run: Callable[[], None] = loss.backward
    run()


def call_with_gradient(parameter: Tensor, function: Callable[[Tensor], None]) -> None:
    """Call `function` whenever the gradient of a parameter has been added to its `grad`."""
    register: Callable[[Callable[[Tensor], None]], object] = (
        parameter.register_post_accumulate_grad_hook
    )
    register(function)


def open_kernels() -> torch.library.Library:
    """Open a set of kernels for torch's operators, for `replace_kernel` and `close_kernels`."""
    build: Callable[[str, str], torch.library.Library] = torch.library.Library
    return build("aten", "IMPL")


def replace_kernel(
    kernels: torch.library.Library,
    operator: str | torch._ops.OpOverload,
    kernel: Callable[..., object],
    key: str,
) -> None:
    """Make torch call `kernel` for an operator at one dispatch key, process-wide."""
    replace: Callable[[str | torch._ops.OpOverload, Callable[..., object], str], None] = (
        kernels.impl
    )
    replace(operator, kernel, key)


def close_kernels(kernels: torch.library.Library) -> None:
    """Restore torch's own kernels."""
    close: Callable[[], None] = kernels._destroy
    close()


def flash_attention_enabled() -> bool:
    """Whether flash attention is enabled, on any device (the setting is torch.cuda's by name)."""
    enabled: Callable[[], bool] = torch.backends.cuda.flash_sdp_enabled
    return enabled()
