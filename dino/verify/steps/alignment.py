"""Compares whole training steps on the device, in every mode and number format, with the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.config import change
from dino.devices.config import PrecisionConfig
from dino.training.config import AlignConfig
from dino.verify.base import (
    FAIL,
    FORMATS,
    PASS,
    THREADS,
    Bench,
    Finding,
    NotRunError,
    Result,
    Setting,
    Variant,
    accept,
)

if TYPE_CHECKING:
    from dino.training.alignment import Difference, Trace

TITLE = "alignment with the CPU"
REFERENCE = "CPU"
# Largest difference of two fp32 devices, divided by a tensor's largest number if that is above 1.
# The same steps with other orders of summation end within 2e-6 (the simulated card, eight steps); a
# wrong operator moves a gradient by 1e-2.
LIMIT = 1e-4
# In 16 bits, a factor on the distance of the CPU's own steps in that format from its fp32 steps. A
# device's policy may run more operators in 16 bits than the CPU's: up to 5.4 times the distance on
# the simulated card with the bridge's lists.
OWN = 10.0
QUICK_SIZES = {
    **{"patch_size": 8, "global_crops_size": 32, "local_crops_size": 16, "out_dim": 256},
    **{"batch_size_per_device": 4, "steps": 3},
}
FULL_SIZES = {"batch_size_per_device": 4, "steps": 8}
PARTS = {  # text in a tensor's name -> group; the first match counts
    "head.last_layer": "last layer",
    "head.": "head",
    "attn.": "attention",
    "mlp.": "perceptrons",
    "norm": "norms",
    "patch_embed": "embedding",
    "pos_embed": "embedding",
    "cls_token": "embedding",
}


def list_variants(setting: Setting) -> Sequence[Variant]:
    """Return the CPU in every number format, in one process; then every mode in every format."""
    reference = Variant(label=REFERENCE, device="cpu", options={"formats": FORMATS})
    tested = [
        Variant(label=f"{mode} {precision}", device=setting.device, mode=mode, precision=precision)
        for mode in setting.quickest_first
        for precision in FORMATS
        if not setting.leaves_out(mode, precision)
    ]
    return [reference, *tested]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Train; save the reference, and compare every other trace with it."""
    import torch

    from dino.devices.cpu import CpuDevice
    from dino.devices.op_lists import read_op_lists
    from dino.runtime.context import Run
    from dino.training.alignment import compare

    run, folder = bench.opened, bench.setting.folder
    if variant.label != REFERENCE:
        bench.say("training steps")
        trace = trace_run(variant, run, bench.setting)
        fp32, own = (_load(_kept(folder, each)) for each in (FORMATS[0], variant.precision))
        return {
            "table": compare_by_part(compare(trace, fp32)),
            "own": compare_by_part(compare(own, fp32)),
        }
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    for precision in variant.options["formats"]:
        bench.say(precision)
        lists = (
            read_op_lists(PrecisionConfig(precision=precision)) if precision == FORMATS[2] else None
        )
        device = (
            run
            if precision == FORMATS[0]
            else Run(device=CpuDevice(precision, lists), processes=run.processes)
        )
        torch.save(vars(trace_run(variant, device, bench.setting)), _kept(folder, precision))
    return {}


def trace_run(
    variant: Variant,
    run: Any,
    setting: Setting,
    more: Mapping[str, Any] | None = None,
    *,
    share: slice = slice(None),
    gradients: bool = True,
) -> Trace:
    """Trace steps on this process's share of the drawn batches, with `more` settings."""
    from dino.training.alignment import trace_steps
    from dino.training.plan import build_plan

    sizes = QUICK_SIZES if setting.is_quick else FULL_SIZES
    config = change(AlignConfig(), {**sizes, **variant.settings(), **(more or {})})
    steps = config.align.steps
    plan = build_plan(
        config, iterations=-(-steps // config.run.epochs), world_size=run.processes.world_size
    )
    batches = [
        type(batch)(*(field[share] for field in batch))
        for batch in draw_batches(config, run.processes.world_size)
    ]
    return trace_steps(config, run, plan, batches, gradients=gradients)


def draw_batches(config: AlignConfig, world_size: int) -> list[Any]:
    """Draw one batch per step for all processes, on the host; the same for every device."""
    from dino.data.synthetic import make_batch
    from dino.devices.cpu import CpuDevice
    from dino.training.build import build_recipe

    host, images = CpuDevice("fp32"), config.data.batch_size_per_device * world_size
    return [
        make_batch(
            build_recipe(config),
            images,
            seed=seed,
            device=host.torch_device,
            to_device=host.to_device,
        )
        for seed in range(config.align.steps)
    ]


def compare_by_part(rows: Iterable[Difference]) -> dict[str, dict[str, float]]:
    """Return {group: {"most": largest, "mean": mean over its tensors}} by quantity and part."""
    grouped: dict[str, list[Difference]] = {}
    for row in rows:
        part = next((part for text, part in PARTS.items() if text in row.name), "")
        has_parts = row.what in {"gradients", "student", "teacher"}
        group = f"{row.what}, {part}" if part and has_parts else row.what
        grouped.setdefault(group, []).append(row)
    return {
        group: {
            "most": _largest(row.most for row in members),
            "mean": sum(row.mean for row in members) / len(members),
        }
        for group, members in grouped.items()
    }


def _largest(numbers: Iterable[float]) -> float:
    """Return the largest number; NaN counts as infinite."""
    return max(number if number == number else float("inf") for number in numbers)


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Check each group of tensors against its limit."""
    return [_judge(result) for result in results]


def _judge(result: Result) -> Finding:
    figures = result.figures or {}
    if result.variant.label == REFERENCE:
        return accept(result, PASS, "the reference, in every number format")
    limits = {group: max(LIMIT, OWN * row["most"]) for group, row in figures["own"].items()}
    apart = {group: row["most"] for group, row in figures["table"].items()}
    wrong = sorted(
        (group for group in apart if not apart[group] <= limits[group]),
        key=lambda each: -apart[each],
    )
    if wrong:
        parts = "; ".join(
            f"{group} {apart[group]:.1e} (at most {limits[group]:.1e})" for group in wrong[:3]
        )
        remedy = f"do not train in this mode and number format ({result.variant.label})"
        return accept(result, FAIL, f"differs from the CPU: {parts}", remedy, limits=limits)
    worst = max(apart, key=lambda group: apart[group] / limits[group])
    summary = (
        f"equals the CPU; closest to its limit: {worst} {apart[worst]:.1e} "
        f"(at most {limits[worst]:.1e})"
    )
    return accept(result, PASS, summary, limits=limits)


def _load(path: Path) -> Trace:
    import torch

    from dino.training.alignment import Trace

    if not path.exists():
        raise NotRunError("the CPU's own steps, which are the reference, are missing")
    return Trace(**torch.load(path, weights_only=True))


def _kept(folder: Path, precision: str) -> Path:
    return folder / f"trace_{precision}.pt"
