"""Multiplies matrices in each execution mode: whether the device computes at all, and how fast."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dino.verify.base import COMPILED, FAIL, PASS, Bench, Finding, Result, Setting, Variant, accept

TITLE = "product of matrices"
SIDES = {"quick": 128, "full": 4096}
CHECKED = 128  # side of the product whose numbers are compared
REPEATS = 5
# Relative L2 error. A sum of 128 products is off by about 3e-7 in float32 and by 3e-4 in 19-bit
# formats. Rounding a result to bfloat16 changes each number by at most 2^-9, about 1.7e-3 in this
# norm.
LIMITS = {"fp32": 1e-5, "bf16": 4e-3}


def list_variants(setting: Setting) -> Sequence[Variant]:
    """Return one variant per mode, with both number formats."""
    return [Variant(label=mode, device=setting.device, mode=mode) for mode in setting.modes]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Compare a small product with the host's in float64; time a large one."""
    import torch
    from torch import Tensor, nn

    device = bench.opened.device

    class Product(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left @ right

    product = device.compile_module(Product()) if variant.mode == COMPILED else Product()
    found: dict[str, Any] = {"errors": {}, "TFLOP/s": {}}
    generator = torch.Generator().manual_seed(0)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        bench.say(f"{name}, {CHECKED} x {CHECKED}")
        pair = [torch.randn(CHECKED, CHECKED, generator=generator).to(dtype) for _ in range(2)]
        expected = pair[0].double() @ pair[1].double()
        result = product(*(device.to_device(each) for each in pair)).cpu().double()
        found["errors"][name] = float((result - expected).norm() / expected.norm())
        side = SIDES[bench.setting.size]
        bench.say(f"{name}, {side} x {side}")
        large = [
            device.to_device(torch.randn(side, side, generator=generator).to(dtype))
            for _ in range(2)
        ]
        seconds = _time(functools.partial(product, *large), device.synchronize)
        found["TFLOP/s"][name] = 2 * side**3 / seconds / 1e12
    return found


def _time(call: Callable[[], Any], synchronize: Callable[[], None]) -> float:
    """Return the seconds of the fastest of some calls."""
    seconds = []
    for _ in range(REPEATS + 1):
        synchronize()
        began = time.perf_counter()
        kept = call()
        synchronize()
        seconds.append(time.perf_counter() - began)
        del kept
    return min(seconds[1:])


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Check each number format against its limit."""
    findings = []
    for result in results:
        figures = result.figures or {}
        wrong = [name for name, error in figures["errors"].items() if not error <= LIMITS[name]]
        rates = ", ".join(f"{name} {rate:.3g} TFLOP/s" for name, rate in figures["TFLOP/s"].items())
        if wrong:
            errors = ", ".join(f"{name} is off by {figures['errors'][name]:.1e}" for name in wrong)
            remedy = (
                f"train in another mode than {result.variant.mode}: this mode multiplies matrices "
                "wrongly"
            )
            findings.append(
                accept(
                    result, FAIL, f"wrong numbers: {errors} (at most {LIMITS[wrong[0]]:g})", remedy
                )
            )
        else:
            findings.append(accept(result, PASS, f"correct; {rates}"))
    return findings
