"""A GPU that is not there: tensors without content, and what a step would launch for them.

Torch's fake tensors fail where the host would read one. Autograd's own backward pass and the fused
AdamW ask the driver: gradients are made up, and the optimizer's operator is counted, not run.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dino.verify.measure import StepCounts

GPU = torch.device("cuda", 0)
# Of torch's multi_tensor_apply (ForeachFunctors, MultiTensorApply.cuh): most tensors of one launch
# by number of lists, most blocks, numbers in a block. And tensors of one launch of `cat` (Shape.cu).
MOST_TENSORS, MOST_BLOCKS, BLOCK = (110, 64, 48, 36, 30), 320, 65536
MOST_JOINED = 128
NO_KERNEL = ("aten.promote_types.default",)  # and a fake tensor's attributes, which are `prim`


@contextlib.contextmanager
def avoiding_the_driver() -> Iterator[None]:
    """Inside, torch changes to a GPU without asking the driver, as newer torch does by itself with
    fake tensors.

    Torch 2.5 asks it at every index and convolution: its table of what changes devices gets for
    CUDA the entry of the meta device, which does nothing. And it asks which fused attention the GPU
    has: there is none here.
    """
    if hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    table = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # of c10::DeviceType
    table[cuda] = table[meta]
    with sdpa_kernel(SDPBackend.MATH):
        yield


@contextlib.contextmanager
def autocasting(device_type: str) -> Iterator[None]:
    """Autocast to bfloat16; torch.autocast itself would ask whether there is a GPU."""
    torch.set_autocast_enabled(device_type, True)
    torch.set_autocast_dtype(device_type, torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device_type, False)


@contextlib.contextmanager
def fusing_attention() -> Iterator[None]:
    """Networks built inside attend by flash attention, which torch chooses only if a GPU has it."""
    chosen, functional = F.scaled_dot_product_attention, torch.nn.functional

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if query.device != GPU:
            return chosen(query, key, value)
        mixed: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return mixed

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = chosen


def send(network: nn.Module, device: torch.device = GPU) -> nn.Module:
    """Parameters and buffers without content; a network's own `to` would ask the driver."""
    for part in network.modules():
        for name, own in part._parameters.items():
            if own is not None:
                there = torch.empty(own.shape, device=device)
                part._parameters[name] = nn.Parameter(there, requires_grad=own.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)
    return network


class BackwardDoneError(Exception):
    """Ends a step of which only the backward pass counts."""


class DryEngine:
    """A step's engine, which makes gradients up, or with `backward` ends after computing them."""

    micro_batches, reads_freely, fuses_updates, fuses_lists = 1, False, True, True

    def __init__(
        self,
        student: nn.Module,
        rule: Any,
        *,
        autocast: Callable[[], Any] = contextlib.nullcontext,
        backward: bool = False,
    ) -> None:
        self.student, self.rule, self.losses = student, rule, list[Tensor]()
        self.autocast, self.goes_back = autocast, backward

    def split(self, batch: Any) -> list[Any]:
        return [batch]

    def backward(self, loss: Tensor) -> None:
        self.losses.append(loss)
        if self.goes_back:
            (loss / self.micro_batches).backward()
            return
        for parameter in self.student.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None

    def unscale(self) -> None:
        if self.goes_back:
            raise BackwardDoneError

    def update(self, inputs: Any) -> None:
        self.rule.step(inputs)


class DryCounts(StepCounts):
    """Launches by phase and operator, the kernels that torch's source makes of them, and mixing.

    Attributes:
        operators: Launches by (phase, operator).
        kernels: By phase: one for an operator, but for an operator on a list what torch's loop over
            the list launches. A lower bound: some operators (reductions, attention's backward
            pass, large sums) launch two or three.
        waits: Operators that copy a tensor of the host to the device, or read one, by phase.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.kernels = Counter[tuple[str, str]](), Counter[str]()
        self.waits = Counter[tuple[str, str]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) in NO_KERNEL or func.namespace == "prim":
            return func(*args, **(kwargs or {}))
        name, before = func.overloadpacket.__name__, self.launches.total()
        if "_fused_adamw" in name:
            self.launches[self.phase] += 1
            result = None
        else:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.launches.total() > before:
            self.operators[self.phase, name] += 1
            self.kernels[self.phase] += count_kernels(name, args)
        elif name == "_to_copy" and args[0].device != result.device:
            self.waits[self.phase, name] += 1
        return result


def count_kernels(name: str, args: tuple[Any, ...]) -> int:
    """Kernels of one operator on CUDA."""
    if name in ("cat", "stack"):
        return -(-len(args[0]) // MOST_JOINED)
    if not name.startswith(("_foreach_", "_fused_")):
        return 1
    lists = [part for part in args if isinstance(part, list | tuple) and len(part)]
    tensors = [part for part in lists if isinstance(part[0], Tensor)]
    first = [tensor.shape for tensor in tensors[0]]
    if name.startswith("_fused_"):
        return _count_applied(tensors[0], 4)
    if any([tensor.shape for tensor in part] != first for part in tensors):
        return len(first)  # the slow route: tensor by tensor
    outputs = 0 if name.endswith("_") else 1
    whole = _count_applied(tensors[0], len(tensors) + outputs)
    return 2 * whole if "norm" in name else whole


def _count_applied(tensors: list[Tensor], lists: int) -> int:
    """Launches of multi_tensor_apply."""
    launches, held, blocks = 0, 0, 0
    for tensor in tensors:
        held += 1
        for _ in range(math.ceil(tensor.numel() / BLOCK)):
            blocks += 1
            if blocks == MOST_BLOCKS:
                launches, blocks, held = launches + 1, 0, 1
        if held == MOST_TENSORS[lists - 1] and blocks:
            launches, blocks, held = launches + 1, 0, 0
    return launches + bool(blocks)
