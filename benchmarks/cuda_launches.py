"""What one training step gives a GPU to launch, by phase, counted without a GPU.

    python benchmarks/cuda_launches.py [--tree OTHER_CHECKOUT] [--arch vit_small ...]

Takes the flags of main_dino.py; ViT-S/16 at 64 images in bf16 unless they say otherwise. Everything
but the backward pass runs on cuda tensors without content; the backward pass runs on the CPU's,
under bf16 autocast with torch's fused attention, and has the operators that a GPU's has but for the
casts that the two autocasts disagree on. Prints a table: dispatched operators that compute (views
and allocations are not launches) and the kernels that torch's source makes of them, at least. The
last line is JSON. `--tree` counts the step of another checkout.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORDS = "--data_path demo --arch vit_small --drop_path_rate 0.1 --batch_size_per_device 64"
# Names that older checkouts have for parts of a phase.
PHASES = {"clipping and optimizer": "update", "teacher's update": "update"}
GPU_BYTES = 80 << 30  # of the card whose loss is counted


def main() -> None:
    """Count."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--tree", default=str(ROOT))
    words, more = parser.parse_known_args()
    sys.path[:0] = [words.tree, str(ROOT)]
    forward, backward = count_step([*WORDS.split(), *more])
    operators, kernels = Counter[str](), Counter[str]()
    for counts, only in ((forward, False), (backward, True)):
        for table, found in ((operators, counts.launches), (kernels, counts.kernels)):
            for phase, count in found.items():
                if (phase == "backward") == only:
                    table[PHASES.get(phase, phase)] += count
    operators, kernels = +operators, +kernels  # without phases that launch nothing
    for phase in operators:
        counts = backward if phase == "backward" else forward
        most = Counter(
            {
                name: count
                for (place, name), count in counts.operators.items()
                if PHASES.get(place, place) == phase
            }
        )
        names = ", ".join(f"{count} {name}" for name, count in most.most_common(5))
        print(f"{phase:12} {operators[phase]:5} operators {kernels[phase]:5} kernels   {names}")
    print(f"{'all':12} {operators.total():5} operators {kernels.total():5} kernels")
    waits = {" ".join(key): count for key, count in forward.waits.items()}
    print(json.dumps({"operators": operators, "kernels": kernels, "host": waits}))


def count_step(words: list[str]) -> tuple[Any, Any]:
    """Counts of the second of two steps: all but the backward pass, and one that has it."""
    import torch

    from tests.cuda_dry import GPU

    return count_on(words, GPU, backward=False), count_on(words, torch.device("cpu"), backward=True)


def count_on(words: list[str], device: Any, *, backward: bool) -> Any:
    """Counts of the second of two steps on one device's tensors without content."""
    import contextlib
    import functools
    import inspect

    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from dino.cli.options import parse
    from dino.data.crops import Crops
    from dino.data.photometric import Normalization
    from dino.data.synthetic import make_batch
    from dino.models.registry import expect_sizes
    from dino.training.build import build_network, build_recipe
    from dino.training.config import TrainConfig
    from dino.training.ema import build_teacher
    from dino.training.optim import build_optimizer
    from dino.training.step import DinoProgram, StepInputs
    from tests.cuda_dry import (
        BackwardDoneError,
        DryCounts,
        DryEngine,
        autocasting,
        avoiding_the_driver,
        fusing_attention,
        send,
    )

    config = parse(TrainConfig, words)
    images, prototypes = config.data.batch_size_per_device, config.student.out_dim
    with fusing_attention():
        student, teacher = (
            build_network(config, drop_path_rate=rate, norm_last_layer=True)
            for rate in (config.student.drop_path_rate, 0.0)
        )
    build_teacher(teacher, student)
    expect_sizes(student.backbone, [config.crops.global_crops_size, config.crops.local_crops_size])
    if hasattr(student, "stages"):
        from dino.devices.casting import cast_together

        cast_together([*student.stages, *teacher.stages])
    host = make_batch(
        build_recipe(config), 1, seed=0, device=torch.device("cpu"), to_device=lambda rows: rows
    )
    more = {}
    if "loss_rows" in inspect.signature(DinoProgram.__init__).parameters:
        from dino.devices.base import TEMPORARY_PART
        from dino.training.loss import choose_rows

        more["loss_rows"] = choose_rows(prototypes, GPU_BYTES // TEMPORARY_PART)
    with fusing_attention(), avoiding_the_driver(), FakeTensorMode(allow_non_fake_inputs=True):
        rule = build_optimizer(config.optim.optimizer, send(student, device), fused=True)
        program = DinoProgram(
            student=student,
            teacher=send(teacher, device),
            prototypes=prototypes,
            normalization=Normalization(),
            clip_grad=3.0,
            **more,
        )
        autocast = functools.partial(autocasting, device.type)
        engine = DryEngine(student, rule, autocast=autocast, backward=backward)
        views = host.global_pixels.shape[1] + host.local_pixels.shape[1]
        depth = torch.empty(1, 2 * len(student.backbone.blocks), views * images, device=device)
        for _ in range(2):
            batch = Crops(
                *(
                    torch.empty(images, *field.shape[1:], dtype=field.dtype, device=device)
                    for field in host
                )
            )
            inputs = StepInputs(*torch.empty(5, device=device).unbind(), depth)
            for parameter in student.parameters():
                parameter.grad = None
            with DryCounts() as counts:
                program.enter = counts.enter
                with contextlib.suppress(BackwardDoneError):
                    program.step(engine, batch, inputs)
    return counts


if __name__ == "__main__":
    main()
