"""Trains the demo briefly in every mode and on the CPU; compares loss curves and k-NN.

It is a full run of the trainer, with loader, log and checkpoints. Correct devices differ by
rounding alone. The effect of rounding was measured on the CPU: runs of one seed whose learning rate
differs by a few parts in a million, in the number format in question, against the fp32 run
(`benchmarks/verify_seeds.py`). A device may be FACTOR times that far away. Runs of different seeds
are hundreds of times farther apart than fp32 runs that differ by rounding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino.config import change
from dino.training.config import TrainConfig
from dino.verify.base import (
    FAIL,
    FORMATS,
    NOT_RUN,
    PASS,
    THREADS,
    Bench,
    Finding,
    Result,
    Setting,
    Variant,
    accept,
)

TITLE = "short training"
REFERENCE = "CPU"
FACTOR = 10.0  # a device may run more operators in 16 bits than the CPU, as in step 5
# Smallest limit of a point of the curve, which starts at the log of the prototypes: a device's own
# functions round too.
LEAST = 0.01
RATE = 0.003  # the peak learning rate for a batch of 256
METHOD = {
    **{"patch_size": 8, "in_chans": 1, "use_bn_in_head": True, "drop_path_rate": 0.0},
    **{"global_crops_scale": (0.5, 1.0), "local_crops_scale": (0.2, 0.5), "local_crops_number": 2},
    **{
        "momentum_teacher": 0.99,
        "warmup_teacher_temp": 0.03,
        "teacher_temp": 0.03,
        "warmup_epochs": 1,
    },
    **{"min_lr": 1e-5, "weight_decay_end": 0.1, "saveckp_freq": 0, "num_workers": 0},
}
ALIGNED = {"arch": "vit_mini", "global_crops_size": 32, "local_crops_size": 16}


@dataclass(frozen=True, kw_only=True)
class Size:
    """Size of one training; an epoch is a point of the curve.

    Attributes:
        settings: Settings in addition to METHOD, which they override.
        epochs: Points of the curve.
        batch: Images per step.
        steps: Steps per epoch.
        held_out: Validation images of each of the ten classes.
        rounding: Largest distance of a point of the curve caused by rounding, by number format.
        knn: Percentage points by which the final accuracy may be lower: rounding moves a few
            images.
    """

    settings: Mapping[str, Any]
    epochs: int
    batch: int
    steps: int
    held_out: int
    rounding: Mapping[str, float]
    knn: float


SIZES = {
    "full": Size(
        settings={
            "arch": "vit_micro",
            "global_crops_size": 40,
            "local_crops_size": 24,
            "out_dim": 256,
        },
        epochs=20,
        batch=32,
        steps=10,
        held_out=50,
        # bf16 is assumed to be seven times that of quick; it was not measured at this size.
        rounding={"fp32": 2e-4, "bf16": 2e-2},
        knn=4.0,
    ),
    "quick": Size(
        # The networks that step 5 compiled.
        settings=ALIGNED | {"out_dim": 64, "in_chans": 3, "use_bn_in_head": False},
        epochs=4,
        batch=4,
        steps=5,
        held_out=5,
        rounding={"fp32": 2e-6, "bf16": 3e-3},
        knn=6.0,
    ),
}


def list_variants(setting: Setting) -> Sequence[Variant]:
    """Return the CPU in fp32, then every mode: in full bf16 and fp32, in quick fp32 only."""
    reference = Variant(label=REFERENCE, device="cpu")
    formats = FORMATS[:1] if setting.is_quick else (FORMATS[1], FORMATS[0])
    tested = [
        Variant(label=f"{mode} {precision}", device=setting.device, mode=mode, precision=precision)
        for precision in formats
        for mode in setting.quickest_first
    ]
    return [reference, *tested]


def run(variant: Variant, bench: Bench) -> Mapping[str, Any]:
    """Train and score one variant."""
    import torch

    if variant.label == REFERENCE:
        torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    folder = bench.setting.folder / f"training_{variant.label.replace(' ', '_')}"
    return train(SIZES[bench.setting.size], bench, variant.settings() | {"output_dir": str(folder)})


def train(size: Size, bench: Bench, more: Mapping[str, Any]) -> dict[str, Any]:
    """Train with `more` settings; return `losses` by epoch, and `knn`, the top-1 accuracy in %."""
    from dino.data.demo import CLASSES, DemoSpec, build_demo
    from dino.evaluation.knn import build_online_knn
    from dino.runtime.metrics import LOG_FILE
    from dino.training.build import choose_normalization
    from dino.training.checks import check_options
    from dino.training.scores import Scorers
    from dino.training.trainer import Trainer

    bench.say("drawing the images")
    per_class = -(-size.batch * size.steps // len(CLASSES))
    root = build_demo(
        DemoSpec(train_per_class=per_class, val_per_class=size.held_out), bench.setting.folder
    )
    lengths = {
        "epochs": size.epochs,
        "eval_knn_every": size.epochs,
        "batch_size_per_device": size.batch,
    }
    ours = {"lr": RATE, "data_path": str(root / "train"), **lengths}
    config = change(TrainConfig(), {**METHOD, **size.settings, **ours, **more})
    source = check_options(config)
    score = build_online_knn(
        config.data,
        bench.opened,
        image_size=config.crops.global_crops_size,
        normalization=choose_normalization(config),
    )
    bench.say(f"{size.epochs * size.steps} steps")
    Trainer(config, source, bench.opened, Scorers(knn=score)).train()
    lines = [
        json.loads(line)
        for line in Path(config.run.output_dir, LOG_FILE).read_text("utf-8").splitlines()
    ]
    return {"losses": [line["train_loss"] for line in lines], "knn": lines[-1]["knn_top1"]}


def judge(results: Sequence[Result], setting: Setting) -> list[Finding]:
    """Compare every curve with the CPU's."""
    reference = next((result for result in results if result.variant.label == REFERENCE), None)
    return [
        _tell_reference(result)
        if result is reference
        else _judge(result, reference.figures if reference else None, SIZES[setting.size])
        for result in results
    ]


def _tell_reference(result: Result) -> Finding:
    losses, knn = (result.figures or {})["losses"], (result.figures or {})["knn"]
    return accept(
        result, PASS, f"the reference: loss {losses[0]:.3f} to {losses[-1]:.3f}, k-NN {knn:.1f} %"
    )


def _judge(result: Result, reference: Mapping[str, Any] | None, size: Size) -> Finding:
    figures = result.figures or {}
    first, last = figures["losses"][0], figures["losses"][-1]
    seen = f"loss {_show(first)} to {_show(last)}, k-NN {figures['knn']:.1f} %"
    if reference is None:
        return accept(
            result,
            NOT_RUN,
            f"{seen}; the CPU's own training, which is the reference, is missing",
        )
    gap = find_gap(figures["losses"], reference["losses"])
    lost = reference["knn"] - figures["knn"]
    limits = {
        "loss": max(LEAST, FACTOR * size.rounding[result.variant.precision]),
        "k-NN": size.knn,
    }
    more = {"loss gap": gap, "k-NN lost": lost, "limits": limits}
    apart = f"the loss curve is up to {gap:.3f} from the CPU's (at most {limits['loss']:.3f})"
    if gap <= limits["loss"] and lost <= limits["k-NN"]:
        return accept(result, PASS, f"{seen}; {apart}", **more)
    worse = f"k-NN is {figures['knn']:.1f} % instead of the CPU's {reference['knn']:.1f} %"
    remedy = f"do not train in this mode ({result.variant.mode}): it silently learns something else"
    return accept(
        result, FAIL, f"{apart}; {worse} (at most {limits['k-NN']:.1f} less)", remedy, **more
    )


def find_gap(losses: Sequence[float | None], reference: Sequence[float | None]) -> float:
    """Return the largest distance of two curves; infinite if a number or point is missing."""
    if len(losses) != len(reference):
        return math.inf
    pairs = zip(losses, reference, strict=True)
    gaps = [math.inf if one is None or other is None else abs(one - other) for one, other in pairs]
    return max(gap if math.isfinite(gap) else math.inf for gap in gaps)


def _show(loss: float | None) -> str:
    return "not finite" if loss is None else f"{loss:.3f}"
