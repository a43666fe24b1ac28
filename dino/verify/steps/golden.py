"""Compares each module on the device with the original's numbers, with a tolerance per format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dino.verify.base import (
    COMPILED,
    FAIL,
    FORMATS,
    PASS,
    Bench,
    Finding,
    Result,
    Setting,
    Variant,
    accept,
)

if TYPE_CHECKING:
    from dino.verify.golden_numbers import Found, Numbers

TITLE = "golden numbers"
# Relative L2 errors. fp32: correct implementations differ by 1e-6 (dino/golden/README.md), a
# product in a format with a short mantissa (tf32) by 1e-3. 16 bits: twice the largest error of the
# CPU's own bf16, 2.8e-2 (the gradient of the head's input, with batch norm).
LIMITS = {"fp32": 1e-4, "bf16": 6e-2, "ops": 6e-2}


class Check(NamedTuple):
    """One number that was compared.

    Attributes:
        name: What was compared.
        error: Its error.
        limit: The allowed error.
    """

    name: str
    error: float
    limit: float


def list_variants(setting: Setting) -> Sequence[Variant]:
    """Return every mode in every number format."""
    formats = FORMATS[:2] if setting.is_quick else FORMATS
    return [
        Variant(label=f"{mode} {precision}", device=setting.device, mode=mode, precision=precision)
        for mode in setting.quickest_first
        for precision in formats
        if not setting.leaves_out(mode, precision)
    ]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Compute each module's numbers; a module that fails does not stop the others."""
    from dino.verify.golden_numbers import Numbers

    device = bench.opened.device
    numbers = Numbers(
        run=bench.opened,
        limit=LIMITS[variant.precision],
        is_half=variant.precision != FORMATS[0],
        compiled=variant.mode == COMPILED,
        few=bench.setting.is_quick and variant.mode == COMPILED,
    )
    checks: list[Check] = []
    broken: dict[str, str] = {}
    missing: dict[str, str] = {}
    for name, module in _list_modules(variant.precision).items():
        bench.say(name)
        try:
            checks += [Check(*each) for each in module(numbers)]
        except FileNotFoundError:
            missing[name] = "its numbers are not in this package"
        except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
            explained = device.explain(error) if isinstance(error, RuntimeError) else None
            broken[name] = (
                explained or f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            )
    return {"checks": [check._asdict() for check in checks], "broken": broken, "missing": missing}


def _list_modules(precision: str) -> dict[str, Callable[[Numbers], Found]]:
    """Return modules by name; those that ignore the number format run in fp32 only."""
    from dino.verify import golden_attention, golden_networks, golden_sets

    formatted: dict[str, Callable[[Numbers], Found]] = {
        "loss": golden_networks.check_loss,
        "attention": golden_attention.check_attention,
        "head": golden_networks.check_head,
        "ViT": golden_networks.check_vit,
        "eight steps": golden_networks.check_trajectory,
    }
    plain: dict[str, Callable[[Numbers], Found]] = {
        "optimizer": golden_networks.check_optimizer,
        "EMA": golden_networks.check_ema,
        "photometric": golden_sets.check_photometric,
        "k-NN": golden_sets.check_knn,
    }
    return formatted if precision != FORMATS[0] else formatted | plain


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Judge each module separately; the summary names those that fail."""
    return [_judge(result, result.figures or {}) for result in results]


def _judge(result: Result, figures: Mapping[str, Any]) -> Finding:
    checks = [Check(**each) for each in figures["checks"]]
    wrong = [check for check in checks if not check.error <= check.limit]
    broken = figures["broken"]
    if not wrong and not broken:
        worst = max(checks, key=lambda check: check.error / check.limit)
        return accept(
            result, PASS, f"{len(checks)} numbers correct; closest to its limit: {describe(worst)}"
        )
    parts = [f"{name}: {text}" for name, text in broken.items()]
    parts += [describe(check) for check in wrong]
    more = f" and {len(parts) - 3} more" if len(parts) > 3 else ""
    remedy = (
        f"do not train in this mode and number format ({result.variant.label}); step 4 says which "
        "operator is at fault"
    )
    return accept(
        result,
        FAIL,
        f"{len(parts)} of {len(checks) + len(broken)} wrong, first {'; '.join(parts[:3])}{more}",
        remedy,
    )


def describe(check: Check) -> str:
    """Return name, error and limit as text."""
    return f"{check.name} {check.error:.1e} (at most {check.limit:.0e})"
