"""Whether an operator's numbers are right, by its kind and its type.

A number e is right if it is within S eps (|e| + r) + A eps32 sqrt(n) r of its reference: eps of the result's type, r
the root mean square of the tensor, n the numbers that are added up for one result. The first part is rounding within
the operator, whose numbers are as large as r; the second what a sum in float32 gathers one by one (Higham, 2002,
section 4.2, in its statistical form), and A its largest deviations among many results.

Views, copies without a shorter type, operators that only choose among numbers, and all results of integers are exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dino.verify.operator_inputs import find_function
from dino.verify.operator_list import Call

ROUNDINGS = {torch.float32: 64, torch.float64: 64, torch.bfloat16: 4, torch.float16: 4}  # S
DEVIATIONS = 4  # A
MOMENT_DEVIATIONS = 6  # standard errors between the moments of two samples: 2e-9 of them are farther apart

EXACT = frozenset(
    {
        *("abs", "amax", "amin", "ceil", "clamp", "clamp_max", "clamp_min", "copysign", "floor", "maximum", "minimum"),
        *("neg", "round", "sign", "trunc", "fill", "masked_fill", "new_zeros", "ones_like", "scalar_tensor", "zero"),
        *("zeros", "zeros_like", "alias", "cat", "clone", "constant_pad_nd", "copy", "detach", "embedding", "flip"),
        *("gather", "index_select", "lift_fresh", "replication_pad2d", "select_backward", "slice_backward", "stack"),
        "where",
    }
)
PRODUCTS = frozenset({"addbmm", "addmm", "baddbmm", "bmm", "dot", "mm", "mv"})
RANDOM = frozenset(
    {"bernoulli", "dropout", "native_dropout", "normal", "rand", "rand_like", "randn", "randn_like", "uniform"}
)
UNIT = frozenset({"bernoulli", "rand", "rand_like", "uniform"})  # random numbers from 0 to 1
UNSET = frozenset({"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"})  # any numbers do


def compare(call: Call, operator: Any, found: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """What is wrong with an operator's results in host memory, or nothing.

    Args:
        call: What was run.
        operator: Its overload.
        found: Tensors that were changed or returned.
        expected: The same of the reference, 16-bit types as float32.
    """
    function, terms = find_function(call.operator), _count_terms(call, expected)
    returned = [tensor.dtype for tensor in found]
    if not operator._schema.is_mutable and returned != list(call.results):
        return f"gives {_list_types(returned)} instead of {_list_types(call.results)}"
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
            problem = _find_error(ours, right, terms)
        if problem:
            return f"result {number} {problem}"
    return ""


def _count_terms(call: Call, results: Sequence[Tensor]) -> int:
    """Numbers that are added up for one result, at most."""
    function, specs = find_function(call.operator), list(call.specs())
    if function in PRODUCTS:
        return specs[-2].size[-1]
    if function == "convolution":
        return math.prod(specs[1].size[1:])
    if not specs or not results or (call.operator.startswith("aten._foreach_") and function != "norm"):
        return 1
    return max(1, max(math.prod(spec.size) for spec in specs) // max(1, min(tensor.numel() for tensor in results)))


def _is_exact(function: str, operator: Any, result: Tensor) -> bool:
    is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in operator._schema.returns)
    is_copy = function == "to_copy" and result.dtype not in (torch.bfloat16, torch.float16)
    return is_view or is_copy or function in EXACT or not result.is_floating_point()


def _count_differences(found: Tensor, expected: Tensor) -> str:
    different = int(((found != expected) & ~(found.isnan() & expected.isnan())).sum())
    return f"differs in {different} of {found.numel()} numbers that are exact" if different else ""


def _find_error(found: Tensor, expected: Tensor, terms: int) -> str:
    """The number that is farthest outside of what is allowed."""
    eps, sums = torch.finfo(found.dtype).eps, torch.finfo(torch.float32).eps * math.sqrt(terms)
    ours, right = found.double().flatten(), expected.double().flatten()
    if not torch.equal(ours.isfinite(), right.isfinite()):
        return f"has {int((~ours.isfinite()).sum())} numbers that are not finite, not {int((~right.isfinite()).sum())}"
    ours, right = ours[right.isfinite()], right[right.isfinite()]
    if not len(right):
        return ""
    scale = right.square().mean().sqrt()
    allowed = ROUNDINGS[found.dtype] * eps * (right.abs() + scale) + DEVIATIONS * sums * scale
    error = (ours - right).abs()
    worst = int((error - allowed).argmax())
    if error[worst] <= allowed[worst]:
        return ""
    return f"is {ours[worst]:.7g} instead of {right[worst]:.7g}: {error[worst]:.1e} apart, {allowed[worst]:.1e} allowed"


def _compare_samples(found: Tensor, expected: Tensor, *, unit: bool) -> str:
    """Random numbers by range, mean and standard deviation."""
    ours, other = found.double().flatten(), expected.double().flatten()
    if not ours.isfinite().all() or (unit and not ((ours >= 0) & (ours <= 1)).all()):
        return "holds numbers that are not finite, or not from 0 to 1"
    if len(other) < 2:
        return ""
    allowed = MOMENT_DEVIATIONS * other.std() * math.sqrt(2 / len(other))
    moments = {"mean": (ours.mean(), other.mean()), "standard deviation": (ours.std(), other.std())}
    for name, (one, another) in moments.items():
        if not abs(one - another) <= allowed:
            return f"has a {name} of {one:.4g}, the CPU's has {another:.4g}"
    return ""


def _list_types(types: Sequence[torch.dtype]) -> str:
    return ", ".join(str(kind).removeprefix("torch.") for kind in types) or "nothing"
