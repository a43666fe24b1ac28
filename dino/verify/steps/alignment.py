"""Whole training steps on the device in every mode and number format, against the CPU: how far apart they end."""

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
# Largest difference of two fp32 devices, over a tensor's largest number where that is above 1. The same steps in other
# orders of summation end within 2e-6 (the simulated card, eight steps); a wrong operator moves a gradient by 1e-2.
LIMIT = 1e-4
# In 16 bits: times what the CPU's own steps in that format are away from its fp32 steps. A device's own policy may run
# more operators in 16 bits than the CPU's: on the simulated card, with the bridge's lists, it is up to 5.4 times.
OWN = 10.0
QUICK_SIZES = {
    **{"patch_size": 8, "global_crops_size": 32, "local_crops_size": 16, "out_dim": 256},
    **{"batch_size_per_device": 4, "steps": 3},
}
FULL_SIZES = {"batch_size_per_device": 4, "steps": 8}
PARTS = {  # of a tensor's name, the first that is in it
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
    """The CPU in every number format, in one process; then every mode in every number format."""
    reference = Variant(label=REFERENCE, device="cpu", options={"formats": FORMATS})
    tested = [
        Variant(label=f"{mode} {precision}", device=setting.device, mode=mode, precision=precision)
        for mode in setting.quickest_first
        for precision in FORMATS
        if not setting.leaves_out(mode, precision)
    ]
    return [reference, *tested]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Train; the reference is kept, every other trace is compared with it."""
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
    """The trace of this process's share of drawn batches, with `more` settings."""
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
    """One batch a step for all processes together, in host memory; the same on every device."""
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
    """{group: {"most": of all its tensors, "mean": over them}}; a group is what was computed, and which part of it."""
    grouped: dict[str, list[Difference]] = {}
    for row in rows:
        part = next((part for text, part in PARTS.items() if text in row.name), "")
        group = (
            f"{row.what}, {part}"
            if part and row.what in {"gradients", "student", "teacher"}
            else row.what
        )
        grouped.setdefault(group, []).append(row)
    return {
        group: {
            "most": _largest(row.most for row in found),
            "mean": sum(row.mean for row in found) / len(found),
        }
        for group, found in grouped.items()
    }


def _largest(numbers: Iterable[float]) -> float:
    """The largest; what is no number counts as infinite."""
    return max(number if number == number else float("inf") for number in numbers)


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Each group of tensors within its limit."""
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
        return accept(result, FAIL, f"apart from the CPU: {parts}", remedy, limits=limits)
    worst = max(apart, key=lambda group: apart[group] / limits[group])
    summary = f"as the CPU; nearest to its limit: {worst} {apart[worst]:.1e} (at most {limits[worst]:.1e})"
    return accept(result, PASS, summary, limits=limits)


def _load(path: Path) -> Trace:
    import torch

    from dino.training.alignment import Trace

    if not path.exists():
        raise NotRunError("the CPU's own steps are missing, with which it would be compared")
    return Trace(**torch.load(path, weights_only=True))


def _kept(folder: Path, precision: str) -> Path:
    return folder / f"trace_{precision}.pt"
