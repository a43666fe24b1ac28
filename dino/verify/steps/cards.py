"""Compares steps on two cards with steps on one card and twice the batch; measures the exchange."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from dino.verify.base import (
    FAIL,
    NOT_RUN,
    PASS,
    Bench,
    Finding,
    NotRunError,
    Result,
    Setting,
    Variant,
    accept,
)
from dino.verify.steps import alignment

TITLE = "more than one card"
COUNT, PAIR = "count", 2
STEPS = 20
# Ten times the limit of one card's eight steps: twenty steps, with two orders of summation in each.
LIMIT = 1e-3
BYTES = {"quick": 1 << 22, "full": 1 << 28}  # of the exchanged tensor; a ViT-S has 1 << 27
REPEATS = 5


def list_variants(setting: Setting) -> Sequence[Variant]:
    """Return the variant that counts the cards."""
    return [Variant(label=COUNT, device=setting.device, mode=setting.modes[0])]


def follow(result: Result, setting: Setting) -> Sequence[Variant]:
    """If there are two cards: one card, then two, in every mode (in quick, in the default mode)."""
    if result.variant.label != COUNT or (result.figures or {}).get("cards", 0) < PAIR:
        return []
    variants = []
    for mode in setting.modes[:1] if setting.is_quick else setting.modes:
        one = Variant(
            label=f"{mode}, one card", device=setting.device, mode=mode, options={"cards": 1}
        )
        two = Variant(
            label=f"{mode}, two cards",
            device=setting.device,
            mode=mode,
            options={"cards": PAIR},
            processes=PAIR,
        )
        variants += [one, two]
    return variants


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Count the cards; or train on one card's share, and compare on the first of two cards."""
    import torch

    from dino.training.alignment import Trace, compare

    run = bench.opened
    cards = int(variant.options.get("cards", 0))
    if not cards:
        return {"cards": run.device.count_cards()}
    bench.say(f"{STEPS} training steps")
    images = 4 // cards
    share = slice(run.processes.rank * images, (run.processes.rank + 1) * images)
    sizes = {"steps": STEPS, "batch_size_per_device": images}
    trace = alignment.trace_run(variant, run, bench.setting, sizes, share=share, gradients=False)
    kept = bench.setting.folder / f"cards_{variant.mode}.pt"
    if cards == 1:
        torch.save(vars(trace), kept)
        return {}
    bench.say("exchanging")
    bandwidth = measure_exchange(run, BYTES[bench.setting.size])
    if not kept.exists():
        raise NotRunError("the steps of one card, which are the reference, are missing")
    alone = Trace(**torch.load(kept, weights_only=True))
    return {"table": alignment.compare_by_part(compare(trace, alone)), "GB/s": bandwidth}


def measure_exchange(run: Any, size: int) -> float:
    """Measure GB/s that each card sends in an all-reduce of `size` bytes (2 (n - 1) / n of it)."""
    import torch

    tensor, seconds = torch.ones(size // 4, device=run.device.torch_device), []
    for _ in range(REPEATS + 1):
        run.device.synchronize()
        began = time.perf_counter()
        run.processes.all_reduce_mean(tensor)
        run.device.synchronize()
        seconds.append(time.perf_counter() - began)
    world_size = run.processes.world_size
    rate: float = 2 * (world_size - 1) / world_size * size / min(seconds[1:]) / 1e9
    return rate


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Check that two cards equal one."""
    return [_judge(result) for result in results]


def _judge(result: Result) -> Finding:
    figures = result.figures or {}
    if "cards" in figures:
        if figures["cards"] < PAIR:
            return accept(result, NOT_RUN, "there is only one card")
        return accept(result, PASS, f"there are {figures['cards']} cards")
    if "table" not in figures:
        return accept(result, PASS, "the reference, with twice the batch")
    apart = {group: row["most"] for group, row in figures["table"].items()}
    worst = max(apart, key=lambda group: apart[group])
    speed = f"an exchange runs at {figures['GB/s']:.3g} GB/s"
    if not apart[worst] <= LIMIT:
        summary = (
            f"two cards differ from one: {worst} {apart[worst]:.1e} apart (at most {LIMIT:.0e}); "
            f"{speed}"
        )
        return accept(
            result,
            FAIL,
            summary,
            f"train on one card, or in another mode than {result.variant.mode}",
        )
    return accept(
        result, PASS, f"equal to one card with twice the batch, {apart[worst]:.1e} apart; {speed}"
    )
