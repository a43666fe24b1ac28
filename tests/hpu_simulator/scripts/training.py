"""A few training steps of a tiny DINO on the device named by the first word; prints one JSON
line."""

import json
import sys
from contextlib import nullcontext

import numpy as np
import torch

from tests.hpu_simulator import leave, load, watch

DEVICE, BACKEND = sys.argv[1], sys.argv[2:]
if DEVICE == "hpu":
    load()

from dino.data.crops import Crops  # noqa: E402
from dino.data.photometric import PARAMETERS, build_normalization  # noqa: E402
from dino.models.head import DINOHead  # noqa: E402
from dino.models.multicrop import MultiCrop  # noqa: E402
from dino.models.registry import build_backbone  # noqa: E402
from dino.training.ema import build_teacher  # noqa: E402
from dino.training.optim import build_optimizer  # noqa: E402
from dino.training.step import DinoProgram  # noqa: E402
from dino.training.step_values import StepInputs  # noqa: E402


def build_network() -> MultiCrop:
    """A tiny student or teacher."""
    backbone = build_backbone("vit_mini", patch_size=8, img_size=16)
    return MultiCrop(backbone, DINOHead(in_dim=backbone.embed_dim, out_dim=16, hidden_dim=32)).to(
        DEVICE
    )


def draw_batch(step: int) -> Crops:
    """Four images, two global views and one local view each."""
    rng = np.random.default_rng(step)
    parts = []
    for views, side in ((2, 16), (1, 8)):
        rows = rng.random((4, views, PARAMETERS), dtype=np.float32) + 0.3
        parts += [rng.integers(0, 256, (4, views, side, side, 3), dtype=np.uint8), rows]
    tensors = [torch.from_numpy(part).to(DEVICE, non_blocking=True) for part in parts]
    return Crops(*tensors, *[torch.zeros(4)] * (len(Crops._fields) - 4))


def cut() -> None:
    """Close the lazy graph."""
    if DEVICE == "hpu":
        from habana_frameworks.torch.core import mark_step

        mark_step()


class Engine:
    """What the step needs of a device, with nothing of the product's own."""

    micro_batches, reads_freely, fuses_updates = 1, False, False

    def split(self, batch):
        return [batch]

    def autocast(self):
        return nullcontext()

    def backward(self, loss):
        self.loss = loss.detach()
        cut()
        loss.backward()
        cut()

    def unscale(self):
        return None

    def update(self, inputs):
        optimizer.step(inputs)


def compiled(network):
    return torch.compile(network, backend=BACKEND[0], dynamic=False) if BACKEND else network


torch.manual_seed(0)
student = build_network()
teacher = build_teacher(build_network(), student)
program = DinoProgram(
    student=compiled(student),
    teacher=compiled(teacher),
    prototypes=16,
    normalization=build_normalization(3),
    clip_grad=3.0,
)
optimizer, engine = build_optimizer("adamw", student), Engine()
report = {"loss": [], "steps": []}
for step in range(4):
    with watch() if DEVICE == "hpu" else nullcontext() as seen:
        numbers = torch.tensor([1e-3 * (step + 1), 0.04 + step / 100, 0.9 + step / 100, 0.04, 1.0])
        inputs = StepInputs(*numbers.to(DEVICE, non_blocking=True).unbind())
        optimizer.zero_grad(set_to_none=True)
        program.step(engine, draw_batch(step), inputs)
        cut()
    report["loss"].append(engine.loss.item())
    if seen:
        report["steps"].append(
            {
                "host_reads": [str(read) for read in seen.host_reads],
                "fallbacks": dict(seen.fallbacks),
                "graphs": len(seen.graphs),
                "new_graphs": [graph.difference for graph in seen.new_graphs],
                "new_ops": len(seen.new_ops),
                "float64": dict(seen.float64),
                "blocking_uploads": seen.uploads.blocking,
                "scalar_uploads": seen.scalar_uploads,
            }
        )
print(json.dumps(report))
leave()
