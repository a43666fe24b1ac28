"""Images a second of the product's own step in each mode, what that costs, and switches that may be faster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from dino.config import change
from dino.devices.hpu.software import BRIDGE_PACKAGES, find_version, read_release
from dino.training.config import TrainConfig
from dino.verify.base import (
    COMPILED,
    EAGER,
    PASS,
    SLOW,
    Bench,
    Finding,
    NotRunError,
    Result,
    Setting,
    Variant,
    accept,
)

TITLE = "speed"
SMALL = {
    **{"arch": "vit_mini", "patch_size": 8, "global_crops_size": 32, "local_crops_size": 16},
    **{"local_crops_number": 2, "out_dim": 256, "batch_size_per_device": 4},
    "drop_path_rate": 0.0,  # the networks of step 5, which a compiler then knows already
}
REAL = {
    "arch": "vit_small",
    "batch_size_per_device": 64,
}  # the paper's: 2 x 224 and 8 x 96 pixels, 65536 prototypes
STEPS = {"quick": (2, 5), "full": (5, 20)}  # of warm-up, and timed
SECONDS = {"quick": 5.0, "full": 10.0}  # for the timed steps
SLOW_WORDS = {
    "cpu fallbacks": "operators run on the host",
    "graph compilations": "graphs are compiled",
}
ATTENTION, AUTOGRAD, FUSED, RECOMPUTE = (
    "fused attention",
    "compiled autograd",
    "fused AdamW",
    "recompute",
)


def list_variants(setting: Setting) -> Sequence[Variant]:
    """Every mode; in full also the largest batch (see `follow`) and each switch."""
    if setting.is_quick:
        return [
            Variant(label=mode, device=setting.device, mode=mode, options={})
            for mode in setting.quickest_first
        ]
    first = setting.modes[0]
    plain = [
        Variant(label=mode, device=setting.device, mode=mode, precision="bf16")
        for mode in setting.quickest_first
    ]
    switches = [
        (ATTENTION, first),
        (ATTENTION, COMPILED),
        (AUTOGRAD, COMPILED),
        (FUSED, EAGER),
        (RECOMPUTE, first),
    ]
    environment = {
        "PT_HPU_USE_ATEN_SDPA": "0"
    }  # what it takes between 1.20 and 1.23; nothing reads it elsewhere
    return [
        *plain,
        *(
            Variant(
                label=f"{mode}, {switch}",
                device=setting.device,
                mode=mode,
                precision="bf16",
                options={"switch": switch},
                environment=environment if switch == ATTENTION else {},
            )
            for switch, mode in dict.fromkeys(switches)
        ),
    ]


def follow(result: Result, setting: Setting) -> Sequence[Variant]:
    """The largest batch that would fit, where a mode's memory told it."""
    largest = (result.figures or {}).get("largest batch")
    if setting.is_quick or not largest or result.variant.options:
        return []
    label = f"{result.variant.mode}, batch {largest}"
    return [replace(result.variant, label=label, options={"batch": largest})]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Build, warm up, time, count, and time again by phase."""
    from dino.training.dry_run import count_bytes, estimate_batch
    from dino.verify.measure import build_workload, count_step, measure_speed, time_phases

    size, switch = bench.setting.size, variant.options.get("switch")
    settings = (SMALL if bench.setting.is_quick else REAL) | variant.settings()
    settings |= (
        {"batch_size_per_device": int(variant.options["batch"])}
        if "batch" in variant.options
        else {}
    )
    settings |= {"recompute": "blocks"} if switch == RECOMPUTE else {}
    options, device = change(TrainConfig(), settings), bench.opened.device
    before = device.memory_peak() or 0
    with switched(switch, device):
        bench.say("building the networks")
        work = build_workload(options, bench.opened)
        warm_up, steps = STEPS[size]
        figures = measure_speed(
            work, warm_up=warm_up, steps=steps, say=bench.say, seconds=SECONDS[size]
        )
        figures["reads freely"] = device.reads_freely
        fixed = before + count_bytes(work.program.student, work.program.teacher, work.optimizer)
        largest, _ = estimate_batch(
            figures["memory peak"],
            figures["memory total"],
            fixed=fixed,
            micro_batch=options.data.batch_size_per_device,
        )
        figures["largest batch"] = largest
        if switch is None and "batch" not in variant.options:
            bench.say("counting launches")
            figures |= count_step(work)
            bench.say("timing phases")
            figures["ms by phase"] = time_phases(work)
    return figures


@contextlib.contextmanager
def switched(switch: str | None, device: Any) -> Iterator[None]:
    """What a switch changes, for the time of the block.

    Raises:
        NotRunError: This software or device has no such switch.
    """
    import torch

    if switch == ATTENTION:
        with _fuse_attention():
            yield
        return
    if switch == FUSED:
        if device.fuses_updates:
            raise NotRunError("it is what this device does anyway")
        device.fuses_updates = True
    elif switch == AUTOGRAD:
        torch._dynamo.config.compiled_autograd = True
    yield


def _fuse_attention() -> AbstractContextManager[object]:
    """A context for the bridge of 1.24; a variable, which the variant has, does it for 1.20 to 1.23."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    release = read_release(find_version(*BRIDGE_PACKAGES))
    if release is None:
        raise NotRunError("it is what torch does here anyway")
    if release < (1, 20):
        raise NotRunError(f"software {release[0]}.{release[1]} has no such switch")
    overrideable = getattr(SDPBackend, "OVERRIDEABLE", None)
    return (
        sdpa_kernel([overrideable])
        if release >= (1, 24) and overrideable
        else contextlib.nullcontext()
    )


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """It is slow where something runs, compiles or waits in every step that should not."""
    return [_judge(result) for result in results]


def _judge(result: Result) -> Finding:
    figures = result.figures or {}
    seen = f"{figures['images/s']:.4g} images/s, batch {figures['batch']}"
    if figures["memory peak"]:
        seen += f", {figures['memory peak'] / 1e9:.2f} GB"
    if "launches a step" in figures:
        seen += f", {figures['launches a step']} launches and {figures['host reads a step']} host reads a step"
    odd = [
        f"{text} ({figures[name]:.0f})" for name, text in SLOW_WORDS.items() if figures.get(name)
    ]
    if figures.get("host reads a step") and not figures["reads freely"]:
        odd.append("the host waits for values")
    if not odd:
        return accept(result, PASS, seen)
    remedy = "nothing is wrong, but each of these costs time in every step; send the report"
    return accept(result, SLOW, f"{seen}; in the steady state {', '.join(odd)}", remedy)
