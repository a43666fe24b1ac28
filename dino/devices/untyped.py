"""What torch leaves without types, private functions among it, under the types that it has.

A checker takes an untyped function for one of any type; given its own here, what calls it is checked again.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributed.nn import functional

all_reduce: Callable[[Tensor], Tensor] = (
    functional.all_reduce
)  # the sum over all processes; gradients flow through


def build_stream() -> torch.cuda.Stream:
    """A stream beside the one that computes."""
    build: Callable[[], torch.cuda.Stream] = torch.cuda.Stream
    return build()


def run_backward(loss: Tensor) -> None:
    """Compute the gradients of a loss ()."""
    run: Callable[[], None] = loss.backward
    run()


def open_kernels() -> torch.library.Library:
    """Kernels of our own for torch's operators, which `replace_kernel` adds to and `close_kernels` takes out again."""
    build: Callable[[str, str], torch.library.Library] = torch.library.Library
    return build("aten", "IMPL")


def replace_kernel(
    kernels: torch.library.Library,
    operator: str | torch._ops.OpOverload,
    kernel: Callable[..., object],
    key: str,
) -> None:
    """Let torch call `kernel` for an operator at one dispatch key, in this whole process."""
    replace: Callable[[str | torch._ops.OpOverload, Callable[..., object], str], None] = (
        kernels.impl
    )
    replace(operator, kernel, key)


def close_kernels(kernels: torch.library.Library) -> None:
    """Give torch its own kernels back."""
    close: Callable[[], None] = kernels._destroy
    close()


def flash_attention_enabled() -> bool:
    """Whether flash attention may be used, on whatever device: the setting is torch.cuda's by name alone."""
    enabled: Callable[[], bool] = torch.backends.cuda.flash_sdp_enabled
    return enabled()
