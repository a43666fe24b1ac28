"""Checks loss, head, ViT, update rules and eight whole steps against the original's numbers.

Inputs are draw(k, ...) of `dino.golden`; its README says how each number was made.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dino import golden
from dino.data.photometric import Normalization
from dino.devices.untyped import run_backward
from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.vit import VisionTransformer
from dino.training.chunks import Chunks
from dino.training.clipping import clip_gradients
from dino.training.ema import build_teacher, update_teacher
from dino.training.loss import compute_loss, compute_targets, update_center
from dino.training.optim import LARS, UpdateInputs, build_optimizer
from dino.training.schedules import compute_teacher_temperature
from dino.training.step import DinoProgram
from dino.training.step_values import METERS, StepInputs
from dino.verify.golden_numbers import Found, Numbers, select_below

# Factor on the limit: a key's bias has no true gradient, and Adam turns its rounding into whole
# steps.
KEY_BIAS = 10.0
# Factor on the limit in 16 bits: steps add up, and the CPU's own loss is off by 3.7e-2 after six.
STEPS = 2.0
HEADS: Mapping[str, dict[str, Any]] = {
    "norm": {},
    "free": {"norm_last_layer": False},
    "bn": {"use_bn": True},
    "one": {"layers": 1},
}
PARAMETER_SHAPES = [(5, 7), (7,), (3, 3, 3, 3), (1,)]


class GivenViews(NamedTuple):
    """Views that are already augmented."""

    large: Tensor
    small: Tensor


class GivenProgram(DinoProgram):
    """The step without its augmentation."""

    def augment(self, batch: tuple[Tensor, ...], *, eager: bool = False) -> tuple[Tensor, ...]:
        """Return the batch unchanged."""
        return tuple(batch)


def check_loss(numbers: Numbers) -> Found:
    """Check loss, gradient and center, computed by rows."""
    arrays = golden.load("loss")
    temperatures = compute_teacher_temperature(start=0.04, final=0.07, warmup_epochs=2, epochs=10)
    center = numbers.to_device(np.zeros((1, 256), np.float32))
    for call in range(3):
        student = numbers.draw(10 + call, 40, 256).requires_grad_()
        temperature = numbers.number(temperatures[int(arrays[f"{call}/epoch"])])
        targets = compute_targets(numbers.draw(20 + call, 8, 256), center, temperature)
        with numbers.run.device.autocast():
            loss = _loss_by_rows(student, targets.probabilities)
        run_backward(loss)
        center = update_center(center, targets.batch_center)
        yield numbers.compare(f"loss by rows {call}", loss, arrays[f"{call}/loss"])
        yield numbers.compare(
            f"loss by rows {call} gradient", _gradient_of(student), arrays[f"{call}/ds"]
        )
        yield numbers.compare(f"loss by rows {call} center", center, arrays[f"{call}/center"])


def _loss_by_rows(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute the loss with an identity as last layer: logits and gradients pass through it."""
    count = logits.shape[1]
    eye, ones = torch.eye(count, device=logits.device), torch.ones(count, 1, device=logits.device)
    return compute_loss(logits, eye, ones, targets, chunks=Chunks(16, 32))


def check_head(numbers: Numbers) -> Found:
    """Check logits and gradients of each kind of head."""
    if numbers.few:
        return
    arrays = golden.load("head")
    for tag, more in HEADS.items():
        head = DINOHead(in_dim=48, out_dim=256, hidden_dim=64, bottleneck_dim=32, **more)
        numbers.build(head, select_below(arrays, f"{tag}/w/"))
        features = numbers.draw(6, 8, 48).requires_grad_()
        with numbers.run.device.autocast():
            logits = numbers.compile(head.train())(features)
        logits.float().square().sum().backward()
        yield numbers.compare(f"head {tag}", logits, arrays[f"{tag}/y"])
        yield numbers.compare(
            f"head {tag} gradient of its input", _gradient_of(features), arrays[f"{tag}/dx"]
        )
        yield numbers.compare(
            f"head {tag} gradient of the prototypes",
            _gradient_of(head.last_layer.weight_v),
            arrays[f"{tag}/dv"],
        )


def check_vit(numbers: Numbers) -> Found:
    """Check outputs, tokens and attention at every golden size; if compiled, outputs only."""
    for patch in (16, 8):
        arrays = golden.load(f"vit_patch{patch}")
        model = VisionTransformer(patch_size=patch, embed_dim=48, depth=2, heads=3).eval()
        numbers.build(model, select_below(arrays, "w/"))
        forward = numbers.compile(model)
        kinds: Mapping[str, Callable[[Tensor], Tensor]] = {
            "cls": forward,
            "last2": functools.partial(_stack_layers, model),
            "attn": model.get_last_selfattention,
        }
        for key in arrays:
            kind, *place = key.split("/")
            skipped = numbers.compiled and (
                kind != "cls" or (numbers.few and (patch != 16 or "224x224" not in key))
            )
            if kind not in kinds or skipped:
                continue
            images = numbers.draw(int(place[0]), *map(int, place[1].split("x")))
            with torch.no_grad(), numbers.run.device.autocast():
                result = kinds[kind](images)
            yield numbers.compare(f"ViT/{patch} {kind} {place[1]}", result, arrays[key])


def _stack_layers(model: VisionTransformer, images: Tensor) -> Tensor:
    return torch.stack(model.get_intermediate_layers(images, 2))


def check_optimizer(numbers: Numbers) -> Found:
    """Check clipping and four LARS updates; the eight steps check AdamW."""
    arrays, fused = golden.load("optim"), numbers.run.device.fuses_updates
    parameters = _golden_parameters(numbers)
    for place, (parameter, scale) in enumerate(zip(parameters, (10, 0.1, 1, 3), strict=True)):
        parameter.grad = numbers.draw(50 + place, *parameter.shape) * scale
    in_rows = not numbers.run.device.reads_freely
    total, _ = clip_gradients(parameters, 3.0, fused=fused, in_rows=in_rows)
    yield numbers.compare(
        "norm of all gradients", total, np.asarray(np.linalg.norm(arrays["clip/norms"]))
    )
    for place, parameter in enumerate(parameters):
        yield numbers.compare(
            f"clipped gradient {place}", _gradient_of(parameter), arrays[f"clip/g{place}"]
        )
    parameters = _golden_parameters(numbers)
    groups = [
        {"params": [parameters[place] for place in places], "last_layer": [], "decayed": decayed}
        for places, decayed in (((0, 2), True), ((1, 3), False))
    ]
    optimizer, inputs = (
        LARS(groups),
        UpdateInputs(*(numbers.number(value) for value in (0.3, 0.04, 1.0, 1.0))),
    )
    for step in range(4):
        for place, parameter in enumerate(parameters):
            parameter.grad = numbers.draw(60 + 10 * step + place, *parameter.shape)
        optimizer.step(inputs)
        for place, parameter in enumerate(parameters):
            yield numbers.compare(
                f"LARS step {step} parameter {place}", parameter, arrays[f"lars/{step}/p{place}"]
            )


def _gradient_of(tensor: Tensor) -> Tensor:
    if tensor.grad is None:
        raise RuntimeError("the backward pass computed no gradient")
    return tensor.grad


def _golden_parameters(numbers: Numbers) -> list[nn.Parameter]:
    return [
        nn.Parameter(numbers.draw(40 + place, *shape))
        for place, shape in enumerate(PARAMETER_SHAPES)
    ]


def check_ema(numbers: Numbers) -> Found:
    """Check the teacher after one EMA update, against the formula in float64."""
    shapes = {"weight": (48, 64), "bias": (48,)}
    student, teacher = nn.Linear(64, 48), nn.Linear(64, 48)
    drawn = {
        name: (golden.draw(71, *shape), golden.draw(72, *shape)) for name, shape in shapes.items()
    }
    numbers.build(student, {name: pair[0] for name, pair in drawn.items()})
    numbers.build(teacher, {name: pair[1] for name, pair in drawn.items()})
    update_teacher(teacher, student, numbers.number(0.9))
    for name, (source, target) in drawn.items():
        yield numbers.compare(
            f"EMA {name}",
            getattr(teacher, name),
            0.9 * target.astype("f8") + 0.1 * source.astype("f8"),
        )


def check_trajectory(numbers: Numbers) -> Found:
    """Check eight whole steps from the original's weights: losses, centers, student, teacher."""
    if numbers.few:  # it would compile two networks at two sizes; step 5 does that once
        return
    arrays, device = golden.load("trajectory"), numbers.run.device
    limit = numbers.limit * (STEPS if numbers.is_half else 1.0)
    student, teacher = (_golden_network(norm_last_layer=norm) for norm in (False, True))
    numbers.build(student, select_below(arrays, "init/"))
    build_teacher(teacher.to(device.torch_device), student)
    program = GivenProgram(
        student=numbers.compile(student),
        teacher=teacher,
        prototypes=256,
        normalization=Normalization(),
        clip_grad=3.0,
        compile_phase=device.compile_phase,
    )
    step = device.compile_train(
        program, build_optimizer("adamw", student, fused=device.fuses_updates), 1
    )
    for iteration in range(8):
        views = [
            golden.draw(200 + 10 * iteration + view, 2, 3, *[224 if view < 2 else 96] * 2)
            for view in range(6)
        ]
        batch = GivenViews(
            *(torch.from_numpy(np.concatenate(part)) for part in (views[:2], views[2:]))
        )
        before = program.meters.clone()
        rates = [float(arrays[name][iteration]) for name in ("lr", "wd", "momentum")]
        step(batch, StepInputs.on_host([*rates, 0.04, iteration >= 4]))
        loss = (program.meters - before)[METERS.index("loss")]
        yield numbers.compare(f"loss of step {iteration}", loss, arrays["losses"][iteration], limit)
        yield numbers.compare(
            f"center of step {iteration}", program.center[0], arrays["centers"][iteration], limit
        )
    for name, network in (("student", student), ("teacher", teacher)):
        for key, tensor in network.state_dict().items():
            factor = KEY_BIAS if key.endswith("attn.qkv.bias") else 1.0
            yield numbers.compare(
                f"{name} {key} after 8 steps", tensor, arrays[f"{name}/{key}"], factor * limit
            )


def _golden_network(*, norm_last_layer: bool) -> MultiCrop:
    head = DINOHead(
        in_dim=48, out_dim=256, hidden_dim=64, bottleneck_dim=32, norm_last_layer=norm_last_layer
    )
    return MultiCrop(VisionTransformer(embed_dim=48, depth=2, heads=3), head)
