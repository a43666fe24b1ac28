"""--compile: each network is one graph, nothing breaks it, and no step after the first compiles
again."""

import functools

import pytest
import torch
from torch._dynamo.utils import counters

from dino.cli.options import parse
from dino.devices.cpu import CpuDevice
from dino.devices.cuda import CudaDevice
from dino.runtime.context import open_run
from dino.training.build import build_networks, build_program
from dino.training.config import TrainConfig
from dino.training.draws import StepDraws
from dino.training.dry_run import draw_batch
from dino.training.optim import build_optimizer
from dino.training.plan import build_plan

SMALL = "--data_path demo --device cpu --arch vit_mini --patch_size 8 --global_crops_size 32 --local_crops_size 16"
SMALL += " --local_crops_number 2 --out_dim 64 --batch_size_per_device 4"


def run_steps(words, steps):
    """Mean loss, and after each step how many graphs there are."""
    torch._dynamo.reset()
    counters.clear()
    options, graphs = parse(TrainConfig, [*SMALL.split(), *words.split()]), []
    with open_run(options.device, options.launch, precision=options.precision) as run:
        student, teacher = build_networks(options, run)
        optimizer = build_optimizer("adamw", student, fused=run.device.fuses_updates)
        program = build_program(options, student, teacher, run)
        step = run.device.compile_train(program, optimizer, 1)
        plan, draws = (
            build_plan(options, iterations=steps, world_size=1),
            StepDraws(options, student, run.device),
        )
        for place in range(steps):
            step(draw_batch(options), plan.inputs(place, draws.begin(place)))
            graphs.append(counters["stats"]["unique_graphs"])
    return program.meters[1].item() / steps, graphs


@pytest.mark.parametrize(
    "words",
    [
        "--precision fp32",
        "--precision bf16 --recompute activations",
        "--precision fp32 --recompute blocks",
    ],
)
def test_a_network_is_one_graph_for_good(words, monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, none = run_steps(words, 4)
    compiled, graphs = run_steps(f"{words} --compile", 4)
    assert none == [0] * 4
    assert graphs == [2] * 4  # student and teacher, compiled in the first step
    assert not counters["graph_break"]
    assert compiled == pytest.approx(plain, rel=1e-5 if "fp32" in words else 1e-3)


def test_every_phase_compiles_on_a_device_whose_values_the_host_must_not_read(monkeypatch):
    """As on a GPU: the tracer lacks the kernel of the fused update, for one."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, _ = run_steps("--precision fp32 --recompute nothing", 4)
    usual = {"reads_freely": False, "fuses_lists": True, "fuses_updates": CudaDevice.fuses_updates}
    for name, value in usual.items():
        monkeypatch.setattr(CpuDevice, name, value)
    compiled, graphs = run_steps("--precision fp32 --recompute nothing --compile", 4)
    # The student compiles in the first step, the phases around it in the second.
    assert graphs == [1, 5, 5, 5]
    assert not counters["graph_break"]
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_the_fused_update_is_for_steps_that_are_not_compiled():
    device = object.__new__(CudaDevice)
    assert device.fuses_updates
    device.compiles = True
    assert not device.fuses_updates
