"""Measures images per second of the training step in each mode, and with switches that may help."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dino.config import change
from dino.devices.attention import Attend
from dino.devices.base import Device
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
    "drop_path_rate": 0.0,  # the networks of step 5, which are compiled already
}
# The paper's step: 2 x 224 and 8 x 96 pixels, 65536 prototypes.
REAL = {"arch": "vit_small", "batch_size_per_device": 64}
STEPS = {"quick": (2, 5), "full": (5, 20)}  # warm-up steps and timed steps
SECONDS = {"quick": 5.0, "full": 10.0}  # time limit of the timed steps
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
    """Return every mode; in full also each switch (`follow` adds the largest batch)."""
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
    # The switch for software 1.20 to 1.23; other software does not read it.
    environment = {"PT_HPU_USE_ATEN_SDPA": "0"}
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
    """Return a variant with the largest batch that fits, if a mode's memory shows it."""
    largest = (result.figures or {}).get("largest batch")
    if setting.is_quick or not largest or result.variant.options:
        return []
    label = f"{result.variant.mode}, batch {largest}"
    return [replace(result.variant, label=label, options={"batch": largest})]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Build, warm up, time, count, and time by phase."""
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
    """Apply a switch inside the block.

    Raises:
        NotRunError: This software or device has no such switch.
    """
    import torch

    if switch == ATTENTION:
        device.attention = _fuse_attention(device)
    elif switch == FUSED:
        if device.fuses_updates:
            raise NotRunError("this device always does that")
        device.fuses_updates = True
    elif switch == AUTOGRAD:
        torch._dynamo.config.compiled_autograd = True
    yield


def _fuse_attention(device: Device) -> Attend | None:
    """Return the kernel of 1.24, or None for 1.20 to 1.23, where a variable chooses it."""
    release = read_release(find_version(*BRIDGE_PACKAGES))
    if release is None:
        raise NotRunError("torch always does that here")
    if release < (1, 20):
        raise NotRunError(f"software {release[0]}.{release[1]} has no such switch")
    if release < (1, 24):
        return None
    fused = device.find_fused_attention()
    if fused is None:
        raise NotRunError("this software has no fused attention with a backward pass")
    return fused


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Report SLOW if something needlessly runs, compiles or waits in every step."""
    return [_judge(result) for result in results]


def _judge(result: Result) -> Finding:
    figures = result.figures or {}
    seen = f"{figures['images/s']:.4g} images/s, batch {figures['batch']}"
    if figures["memory peak"]:
        seen += f", {figures['memory peak'] / 1e9:.2f} GB"
    if "launches a step" in figures:
        seen += (
            f", {figures['launches a step']} launches and {figures['host reads a step']} host "
            "reads "
            "per step"
        )
    odd = [
        f"{text} ({figures[name]:.0f})" for name, text in SLOW_WORDS.items() if figures.get(name)
    ]
    if figures.get("host reads a step") and not figures["reads freely"]:
        odd.append("the host waits for values")
    if not odd:
        return accept(result, PASS, seen)
    remedy = "the numbers are correct, but each of these costs time in every step; send the report"
    return accept(result, SLOW, f"{seen}; in the steady state {', '.join(odd)}", remedy)
