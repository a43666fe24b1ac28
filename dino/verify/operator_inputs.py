"""Draws the inputs of one operator by seed in its valid range, and again for its reference.

Numbers come from pools that are drawn once, since some operators take hundreds of megabytes. The
pools are: normal numbers around 0.5 with all their bits, so that a product in a shorter type shows;
halves for operators that compare or round, so that ties occur; 0.5 to 2 for logarithms, roots and
divisions. Indices are below the smallest size of the other tensors of the call, which every
operator allows in every dimension.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dino.verify.operator_list import DEVICE, Call, Spec

POOL = 1_000_003  # size of a pool, a prime, so that rows of a tensor do not repeat
SHIFT = 7919  # distance in the pool between the starts of two tensors of a call
POSITIVE = frozenset(
    {
        *(
            "addcdiv",
            "div",
            "fused_adamw",
            "log",
            "log10",
            "log1p",
            "log2",
            "pow",
            "reciprocal",
            "rsqrt",
            "sqrt",
        ),
        *(
            "binary_cross_entropy",
            "floor_divide",
            "fmod",
            "lgamma",
            "logit",
            "native_batch_norm",
            "remainder",
            "xlogy",
        ),
    }
)
COMPARING = frozenset(
    {
        "ceil",
        "eq",
        "floor",
        "frac",
        "ge",
        "gt",
        "le",
        "lt",
        "maximum",
        "minimum",
        "ne",
        "round",
        "sign",
        "trunc",
    }
)
# The type in which the reference computes.
WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


class Inputs:
    """The drawn arguments of one call; `to_device` and `widen` return copies of them."""

    def __init__(self, call: Call) -> None:
        """Draw the arguments."""
        self.call = call
        specs = list(call.specs())
        self.bound = min(
            (min(spec.size, default=1) for spec in specs if spec.dtype.is_floating_point), default=1
        )
        self.memory = [self._draw(spec, number) for number, spec in enumerate(specs)]

    def to_device(self, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """Return arguments and keywords on a device; what the call uploads stays on the host."""
        taken = iter(self.memory)

        def make(spec: Spec) -> Tensor:
            memory = next(taken)
            return _shape(memory.clone() if spec.on_host else memory.to(device, copy=True), spec)

        return self._build(make, {DEVICE: device})

    def widen(self) -> tuple[list[Any], dict[str, Any]]:
        """Return the same on the host for the reference, 16-bit types as float32; call it last."""
        taken = iter(self.memory)

        def make(spec: Spec) -> Tensor:
            memory = next(taken)
            return _shape(memory.to(WIDER.get(memory.dtype, memory.dtype)), spec)

        return self._build(make, {DEVICE: torch.device("cpu"), **WIDER})

    def _build(self, make: Any, meanings: dict[Any, Any]) -> tuple[list[Any], dict[str, Any]]:
        def build(value: Any) -> Any:
            if isinstance(value, Spec):
                return make(value)
            if isinstance(value, list):
                return [build(item) for item in value]
            return meanings.get(value, value) if isinstance(value, str | torch.dtype) else value

        arguments = [build(value) for value in self.call.arguments]
        return arguments, {key: build(value) for key, value in self.call.keywords.items()}

    def _draw(self, spec: Spec, number: int) -> Tensor:
        """Draw the memory of a tensor: in its own shape if it is contiguous, else flat."""
        pool = _draw_pool(choose_pool(find_function(self.call.operator), spec.dtype))
        start = number * SHIFT % POOL
        if start + spec.extent <= POOL:
            flat = pool[start : start + spec.extent].clone()
        else:
            flat = pool.roll(-start).repeat(-(-spec.extent // POOL))[: spec.extent]
        if spec.dtype in (torch.int32, torch.int64):
            flat = flat % self.bound
        flat = flat % 2 == 1 if spec.dtype == torch.bool else flat.to(spec.dtype)
        return flat.view(spec.size) if spec.stride is None else flat


def find_function(operator: str) -> str:
    """Return the function of an operator in any form: "aten._foreach_div_.Tensor" is div."""
    name = operator.split(".")[1].removeprefix("_foreach_")
    return name.strip("_")


def choose_pool(function: str, dtype: torch.dtype) -> str:
    """Return the pool for a tensor of a call."""
    if not dtype.is_floating_point:
        return "integers"
    if function in COMPARING:
        return "halves"
    return "positive" if function in POSITIVE else "normal"


@functools.cache
def _draw_pool(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "integers":
        return torch.randint(0, 2**31 - 1, (POOL,), generator=generator)
    if kind == "positive":
        return torch.rand(POOL, generator=generator) * 1.5 + 0.5
    normal = torch.randn(POOL, generator=generator) + 0.5
    return normal if kind == "normal" else (normal * 2).round() / 2


def _shape(memory: Tensor, spec: Spec) -> Tensor:
    return memory if spec.stride is None else memory.as_strided(spec.size, spec.stride, spec.offset)
