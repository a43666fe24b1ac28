"""The step on a GPU that is not there: tensors without content, which fail where the host would
read one.

Everything runs but what asks the driver: autograd's own backward pass, whose gradients are made up
here, and the fused AdamW. In a process of its own, since other accelerators that torch has met get
in the way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[2]
WORDS = "--data_path demo --arch vit_mini --patch_size 8 --global_crops_size 32 --local_crops_size 16 --out_dim 64"
GPU = torch.device("cuda", 0)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="this torch is built without CUDA")
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_a_step_reads_nothing_and_stays_on_the_gpu(optimizer: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, __file__, optimizer],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "a read and a tensor of the host are seen\n2 steps\n",
    ), done.stderr


@contextlib.contextmanager
def avoiding_the_driver() -> Iterator[None]:
    """Inside, torch changes to a GPU without asking the driver, as newer torch does by itself with
    fake tensors.

    Torch 2.5 asks it at every index and convolution: its table of what changes devices gets for
    CUDA the entry of the meta device, which does nothing. And it asks which fused attention the GPU
    has: there is none here.
    """
    if hasattr(torch._C, "_ensureCUDADeviceGuardSet"):
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    table = (ctypes.c_void_p * 20).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    cuda, meta = 1, 14  # of c10::DeviceType
    table[cuda] = table[meta]
    with sdpa_kernel(SDPBackend.MATH):
        yield


def send(network: nn.Module) -> nn.Module:
    """Parameters without content; a network's own `to` would ask the driver."""
    for part in network.modules():
        for name, own in part._parameters.items():
            if own is not None:
                there = torch.empty(own.shape, device=GPU)
                part._parameters[name] = nn.Parameter(there, requires_grad=own.requires_grad)
    return network


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


class DryEngine:
    """A step's engine without a backward pass, which needs a device."""

    micro_batches, reads_freely, fuses_updates = 1, False, True

    def __init__(self, student: nn.Module, rule: Any) -> None:
        self.student, self.rule, self.losses = student, rule, []

    def split(self, batch: Any, network: nn.Module) -> list[Any]:
        return [batch]

    def autocast(self) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self.losses.append(loss)
        for parameter in self.student.parameters():
            parameter.grad = torch.empty_like(parameter)

    def unscale(self) -> None:
        return None

    def update(self, inputs: Any) -> None:
        self.rule.step(inputs)


def main() -> None:
    """Two steps."""
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
        check_the_check()
        rule = build_optimizer(sys.argv[1], send(student))
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
    print("2 steps")


if __name__ == "__main__":
    main()
