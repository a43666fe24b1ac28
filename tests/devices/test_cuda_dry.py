"""The step on a GPU that is not there (`tests/cuda_dry`): it reads nothing, stays on the GPU, and
launches as few operators as it has been brought to.

In a process of its own, since other accelerators that torch has met get in the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.cuda_dry import GPU, DryEngine, avoiding_the_driver, send

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
WORDS = "--data_path demo --arch vit_mini --patch_size 8 --global_crops_size 32 --local_crops_size 16 --out_dim 64"
# Operators of a step of 12 blocks in bf16 by phase; kernels only where lists have more than one.
# Before weights were cast by block: 2245 operators, 2570 kernels (docs/performance.md).
MOST = {
    "augmentation": 298,
    "teacher": 202,
    "student": 253,
    "loss": 62,
    "backward": 428,
    "update": 79,
}
MOST_KERNELS = {**MOST, "update": 93}
BEFORE = 2245
OPTIMIZERS = ("adamw", "sgd", "lars")

built_with_cuda = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="this torch is built without CUDA"
)


@built_with_cuda
def test_a_step_reads_nothing_and_stays_on_the_gpu() -> None:
    done = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "a read and a tensor of the host are seen\n"
        + "".join(f"{o}: 2 steps\n" for o in OPTIMIZERS),
    ), done.stderr


@built_with_cuda
@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="no count: operators differ between releases, and the bounds are those of torch 2.14",
)
def test_a_step_of_twelve_blocks_launches_few_operators_and_uploads_nothing() -> None:
    """ViT-Ti has as many operators as ViT-S: only their widths differ."""
    done = subprocess.run(
        [sys.executable, "benchmarks/cuda_launches.py", "--arch", "vit_tiny"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=ROOT,
        check=True,
        timeout=300,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["operators"].keys() == MOST.keys()
    for phase, most in MOST.items():
        assert 0 < found["operators"][phase] <= most, (phase, done.stdout)
        assert found["kernels"][phase] <= MOST_KERNELS[phase], (phase, done.stdout)
    assert sum(found["operators"].values()) <= 0.6 * BEFORE
    assert found["host"] == {}, "a CUDA graph cannot record what the host sends or reads"


def check_the_check() -> None:
    """What must be seen is seen."""
    there = torch.empty(3, device=GPU)
    for wrong in (lambda: float(there.sum()), lambda: there + torch.empty(3)):
        try:
            wrong()
        except RuntimeError:
            continue
        raise AssertionError("not seen")
    print("a read and a tensor of the host are seen")


def main() -> None:
    """Two steps with each optimizer."""
    with avoiding_the_driver(), FakeTensorMode(allow_non_fake_inputs=True):
        check_the_check()
    for optimizer in OPTIMIZERS:
        take_steps(optimizer)
        print(f"{optimizer}: 2 steps")


def take_steps(optimizer: str) -> None:
    """Two steps on the GPU that is not there."""
    from dino.cli.options import parse
    from dino.data.crops import Crops
    from dino.data.photometric import Normalization
    from dino.data.synthetic import make_batch
    from dino.training.build import build_network, build_recipe
    from dino.training.config import TrainConfig
    from dino.training.ema import build_teacher
    from dino.training.optim import build_optimizer
    from dino.training.step import DinoProgram
    from dino.training.step_values import StepInputs

    options = parse(TrainConfig, [*WORDS.split(), "--local_crops_number", "2"])
    student = build_network(options, drop_path_rate=0.1, norm_last_layer=False)
    teacher = build_teacher(
        build_network(options, drop_path_rate=0.0, norm_last_layer=True), student
    )
    host = make_batch(
        build_recipe(options), 4, seed=0, device=torch.device("cpu"), to_device=lambda rows: rows
    )
    with avoiding_the_driver(), FakeTensorMode(allow_non_fake_inputs=True):
        rule = build_optimizer(optimizer, send(student))
        program = DinoProgram(
            student=student,
            teacher=send(teacher),
            prototypes=64,
            normalization=Normalization(),
            clip_grad=3.0,
        )
        engine = DryEngine(student, rule)
        inputs = StepInputs(*torch.empty(5, device=GPU).unbind())
        for _ in range(2):
            batch = Crops(
                *(torch.empty(field.shape, dtype=field.dtype, device=GPU) for field in host)
            )
            program.step(engine, batch, inputs)
        found = [
            *engine.losses,
            program.center,
            program.meters,
            program.non_finite,
            *teacher.parameters(),
        ]
        found += [part for state in rule.state.values() for part in state.values()]
        assert all(isinstance(part, FakeTensor) and part.device == GPU for part in found)


if __name__ == "__main__":
    main()
