"""Checks an operator's numbers, depending on the kind of operator and its types.

A number e is correct if it is within S eps (|e| + r) + A eps32 sqrt(n) r of its reference. Here eps
is that of the shortest type among the operator's inputs and results, r is the root mean square of
the tensor, and n is how many numbers are summed for one result. The first term is rounding within
the operator, whose numbers are as large as r. The second is the error that a float32 sum
accumulates (Higham, 2002, section 4.2, in its statistical form), with A for its largest deviations
among many. For SHORT_SUMS the second term also uses the eps of the shortest type.

Views, copies without a shorter type, operators that only select numbers, and all integer results
must be exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dino.verify.operator_inputs import find_function
from dino.verify.operator_list import Call

PART = 1 << 17  # numbers compared at a time
ROUNDINGS = {torch.float32: 64, torch.float64: 64, torch.bfloat16: 4, torch.float16: 4}  # S
DEVIATIONS = 4  # A
FEWEST_SAMPLES = 16  # fewer random numbers have no meaningful moments
# Standard errors between the moments of two samples; 2e-9 of sample pairs are farther apart.
MOMENT_DEVIATIONS = 6

EXACT = frozenset(
    {
        *(
            "abs",
            "amax",
            "amin",
            "ceil",
            "clamp",
            "clamp_max",
            "clamp_min",
            "copysign",
            "floor",
            "maximum",
            "minimum",
        ),
        *(
            "neg",
            "round",
            "sign",
            "trunc",
            "fill",
            "masked_fill",
            "new_zeros",
            "ones_like",
            "scalar_tensor",
            "zero",
        ),
        *(
            "zeros",
            "zeros_like",
            "alias",
            "cat",
            "clone",
            "constant_pad_nd",
            "copy",
            "detach",
            "embedding",
            "flip",
        ),
        *(
            "gather",
            "index_select",
            "lift_fresh",
            "replication_pad2d",
            "select_backward",
            "slice_backward",
            "stack",
        ),
        "where",
    }
)
# Torch's own CPU kernel sums the gradients of weight and bias in the 16-bit type of the
# activations.
# They are off by 8 % of their root mean square after 300 rows, by 50 % after 12,000. A device need
# not be better.
SHORT_SUMS = frozenset({"native_layer_norm_backward"})
PRODUCTS = frozenset({"addbmm", "addmm", "baddbmm", "bmm", "dot", "mm", "mv"})
RANDOM = frozenset(
    {
        "bernoulli",
        "dropout",
        "native_dropout",
        "normal",
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "uniform",
    }
)
UNIT = frozenset({"bernoulli", "rand", "rand_like", "uniform"})  # random numbers from 0 to 1
# Any numbers are correct.
UNSET = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})


def compare(call: Call, operator: Any, found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Return what is wrong with an operator's results in host memory, or "".

    Args:
        call: The call that ran.
        operator: Its overload.
        found: Tensors that were changed or returned.
        expected: The same tensors of the reference, 16-bit types as float32.
    """
    function = find_function(call.operator)
    returned = [tensor.dtype for tensor in found]
    if not operator._schema.is_mutable and returned != list(call.results):
        return f"returns {_list_types(returned)} instead of {_list_types(call.results)}"
    for number, (ours, right) in enumerate(zip(found, expected, strict=True)):
        if ours.shape != right.shape:
            problem = f"has sizes {list(ours.shape)} instead of {list(right.shape)}"
        elif function in UNSET or torch.equal(ours.to(right.dtype), right):
            continue
        elif function in RANDOM:
            problem = _compare_samples(ours, right, unit=function in UNIT)
        elif _is_exact(function, operator, ours):
            problem = _count_differences(ours, right.to(ours.dtype))
        else:
            problem = _find_error(ours, right, *_choose_tolerance(call, function, ours))
        if problem:
            return f"result {number} {problem}"
    return ""


def _choose_tolerance(call: Call, function: str, result: Tensor) -> tuple[float, float]:
    """Return the tolerance of rounding, relative to |e| + r, and of summing, relative to r."""
    dtypes = {result.dtype, *(spec.dtype for spec in call.specs())} & ROUNDINGS.keys()
    eps = (
        max(torch.finfo(dtype).eps for dtype in dtypes)
        if function in SHORT_SUMS
        else torch.finfo(torch.float32).eps
    )
    rounding = max(ROUNDINGS[dtype] * torch.finfo(dtype).eps for dtype in dtypes)
    return rounding, DEVIATIONS * eps * math.sqrt(_count_terms(call, function, result))


def _count_terms(call: Call, function: str, result: Tensor) -> int:
    """Return an upper bound of how many numbers are summed for one number of a result."""
    specs = list(call.specs())
    if function in PRODUCTS:
        return specs[-2].size[-1]
    if function == "convolution":
        return math.prod(specs[1].size[1:])
    if not specs or (call.operator.startswith("aten._foreach_") and function != "norm"):
        return 1
    return max(1, max(math.prod(spec.size) for spec in specs) // max(1, result.numel()))


def _is_exact(function: str, operator: Any, result: Tensor) -> bool:
    is_view = any(
        each.alias_info is not None and not each.alias_info.is_write
        for each in operator._schema.returns
    )
    is_copy = function == "to_copy" and result.dtype not in (torch.bfloat16, torch.float16)
    return is_view or is_copy or function in EXACT or not result.is_floating_point()


def _count_differences(found: Tensor, expected: Tensor) -> str:
    different = int(((found != expected) & ~(found.isnan() & expected.isnan())).sum())
    return (
        f"differs in {different} of {found.numel()} numbers that must be exact" if different else ""
    )


def _find_error(found: Tensor, expected: Tensor, rounding: float, summing: float) -> str:
    """Describe the number farthest outside its tolerance; work in chunks for a CPU's cache."""
    if not torch.equal(found.isfinite(), expected.isfinite()):
        wrong, right = (int((~tensor.isfinite()).sum()) for tensor in (found, expected))
        return f"has {wrong} numbers that are not finite instead of {right}"
    chunks = [torch.split(tensor.flatten(), PART) for tensor in (found, expected)]
    squares = sum(float(right.double().nan_to_num(0, 0, 0).square().sum()) for right in chunks[1])
    scale = math.sqrt(squares / max(1, expected.numel()))
    worst = (0.0, "")
    for ours, right in zip(*chunks, strict=True):
        error = (ours.double() - right.double()).abs().nan_to_num(0, 0, 0)
        allowed = rounding * (right.double().abs() + scale) + summing * scale
        if not len(right):
            continue
        index = int((error - allowed).argmax())
        excess = float(error[index] - allowed[index])
        if excess > worst[0]:
            text = f"is {ours[index]:.7g} instead of {right[index]:.7g}: {error[index]:.1e} apart"
            worst = (excess, f"{text}, {allowed[index]:.1e} allowed")
    return worst[1]


def _compare_samples(found: Tensor, expected: Tensor, *, unit: bool) -> str:
    """Compare random numbers by range, mean and standard deviation."""
    ours, other = found.double().flatten(), expected.double().flatten()
    if not ours.isfinite().all() or (unit and not ((ours >= 0) & (ours <= 1)).all()):
        return "has numbers that are not finite, or not from 0 to 1"
    if len(other) < FEWEST_SAMPLES:
        return ""
    allowed = MOMENT_DEVIATIONS * other.std() * math.sqrt(2 / len(other))
    moments = {"mean": (ours.mean(), other.mean()), "standard deviation": (ours.std(), other.std())}
    for name, (one, another) in moments.items():
        if not abs(one - another) <= allowed:
            return f"has a {name} of {one:.4g} instead of the CPU's {another:.4g}"
    return ""


def _list_types(types: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in types) or "nothing"
