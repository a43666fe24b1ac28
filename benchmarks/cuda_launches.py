"""What one training step gives a GPU to launch, by phase, counted without a GPU.

    python benchmarks/cuda_launches.py [--arch vit_small ...]

Takes the flags of main_dino.py; ViT-S/16 at 64 images in bf16 unless they say otherwise. Everything
but the backward pass runs on cuda tensors without content; the backward pass runs on the CPU's,
under bf16 autocast with torch's fused attention, and has the operators that a GPU's has but for the
casts that the two autocasts disagree on. Prints a table: dispatched operators that compute (views
and allocations are not launches) and the kernels that torch's source makes of them, at least. The
last line is JSON.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from dino.cli.options import parse  # noqa: E402
from dino.data.crops import Crops  # noqa: E402
from dino.data.photometric import Normalization  # noqa: E402
from dino.data.synthetic import make_batch  # noqa: E402
from dino.devices.base import TEMPORARY_PART  # noqa: E402
from dino.devices.casting import cast_together  # noqa: E402
from dino.models.multicrop import MultiCrop  # noqa: E402
from dino.models.registry import expect_sizes  # noqa: E402
from dino.training.build import build_network, build_recipe  # noqa: E402
from dino.training.chunks import choose_chunks  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402
from dino.training.ema import build_teacher  # noqa: E402
from dino.training.optim import build_optimizer  # noqa: E402
from dino.training.step import DinoProgram, last_layer  # noqa: E402
from dino.training.step_values import StepInputs  # noqa: E402
from tests.cuda_dry import (  # noqa: E402
    GPU,
    BackwardDoneError,
    DryCounts,
    DryEngine,
    autocasting,
    avoiding_the_driver,
    fusing_attention,
    send,
)

WORDS = "--data_path demo --arch vit_small --drop_path_rate 0.1 --batch_size_per_device 64"
GPU_BYTES = 80 << 30  # of the card whose loss is counted


def main() -> None:
    """Count all but the backward pass, and the backward pass."""
    config = parse(TrainConfig, [*WORDS.split(), *sys.argv[1:]])
    forward = count_on(config, GPU, backward=False)
    backward = count_on(config, torch.device("cpu"), backward=True)
    operators, kernels = Counter[str](), Counter[str]()
    for phase in forward.launches:
        counts = backward if phase == "backward" else forward
        if not counts.launches[phase]:
            continue
        operators[phase], kernels[phase] = counts.launches[phase], counts.kernels[phase]
        found = {name: count for (place, name), count in counts.operators.items() if place == phase}
        names = ", ".join(f"{count} {name}" for name, count in Counter(found).most_common(5))
        print(f"{phase:12} {operators[phase]:5} operators {kernels[phase]:5} kernels   {names}")
    print(f"{'all':12} {operators.total():5} operators {kernels.total():5} kernels")
    waits = {" ".join(key): count for key, count in forward.waits.items()}
    print(json.dumps({"operators": operators, "kernels": kernels, "host": waits}))


def count_on(config: TrainConfig, device: torch.device, *, backward: bool) -> DryCounts:
    """Counts of the second of two steps on one device's tensors without content."""
    student, teacher = build_networks(config)
    chunks = choose_chunks(last_layer(student).weight_v, GPU_BYTES // TEMPORARY_PART)
    host = make_batch(
        build_recipe(config), 1, seed=0, device=torch.device("cpu"), to_device=lambda rows: rows
    )
    with fusing_attention(), avoiding_the_driver(), FakeTensorMode(allow_non_fake_inputs=True):
        rule = build_optimizer(config.optim.optimizer, send(student, device), fused=True)
        program = DinoProgram(
            student=student,
            teacher=send(teacher, device),
            prototypes=config.student.out_dim,
            normalization=Normalization(),
            clip_grad=3.0,
            loss_chunks=chunks,
        )
        autocast = functools.partial(autocasting, device.type)
        engine = DryEngine(student, rule, autocast=autocast, backward=backward)
        batch = draw_batch(host, config.data.batch_size_per_device, device)
        views = host.global_pixels.shape[1] + host.local_pixels.shape[1]
        images = config.data.batch_size_per_device * views
        depth = torch.empty(1, 2 * len(student.backbone.blocks), images, device=device)
        for _ in range(2):
            inputs = StepInputs(*torch.empty(5, device=device).unbind(), depth)
            rule.zero_grad(set_to_none=True)
            with DryCounts() as counts, contextlib.suppress(BackwardDoneError):
                program.enter = counts.enter
                program.step(engine, batch, inputs)
    return counts


def build_networks(config: TrainConfig) -> tuple[MultiCrop, MultiCrop]:
    """Student and teacher as a GPU trains them: fused attention, weights cast by block."""
    with fusing_attention():
        student, teacher = (
            build_network(config, drop_path_rate=rate, norm_last_layer=True)
            for rate in (config.student.drop_path_rate, 0.0)
        )
    build_teacher(teacher, student)
    expect_sizes(student.backbone, [config.crops.global_crops_size, config.crops.local_crops_size])
    cast_together([*student.stages, *teacher.stages])
    return student, teacher


def draw_batch(host: Crops, images: int, device: torch.device) -> Any:
    """A batch without content, shaped as many images of `host`'s one."""
    return Crops(
        *(torch.empty(images, *field.shape[1:], dtype=field.dtype, device=device) for field in host)
    )


if __name__ == "__main__":
    main()
