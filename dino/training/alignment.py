"""A few training steps as numbers, and how far two devices diverge; for `dino align` and `verify`.

Shapes: K prototypes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dino.data.crops import Crops
from dino.devices.base import Device
from dino.runtime.context import Run
from dino.training.build import build_networks, build_program
from dino.training.config import TrainConfig
from dino.training.draws import StepDraws
from dino.training.optim import BETAS, build_optimizer
from dino.training.plan import Plan
from dino.training.step_values import METERS


@dataclass(kw_only=True)
class Trace:
    """What a device computed, all float32 in host memory.

    Attributes:
        losses: () of each step.
        gradients: By parameter, (steps, ...): the gradients that the optimizer used.
        student: Weights by parameter, after the last step.
        teacher: The same for the teacher.
        center: (1, K) after the last step.
    """

    losses: list[Tensor] = field(default_factory=list)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    student: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    center: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far apart two versions of a tensor are, relative to its largest number or to 1."""

    what: str
    name: str
    most: float
    mean: float


def trace_steps(
    config: TrainConfig,
    run: Run,
    plan: Plan,
    batches: Sequence[Crops],
    *,
    gradients: bool = True,
    tested: Device | None = None,
) -> Trace:
    """Train on `batches`, one per step, starting from the weights that `seed` draws.

    Gradients are inferred from the optimizer's first moments, m' = b m + (1 - b) g, which every
    device returns.

    Args:
        config: The run's settings.
        run: Device and processes; each process passes its own batches.
        plan: Provides the inputs of each step.
        batches: In host memory; each is what one call on the device under test takes.
        gradients: Whether to keep the gradients of every step.
        tested: The device under test; stochastic depth is drawn for its micro-batches. Defaults to
            the run's device.
    """
    device = run.device
    student, teacher = build_networks(config, run)
    program = build_program(config, student, teacher, run)
    optimizer = build_optimizer("adamw", student, fused=device.fuses_updates, eps=config.optim.eps)
    micro_batches = device.count_micro_batches(config.run.accumulate_steps)
    step = device.compile_train(program, optimizer, micro_batches)
    draws = StepDraws(config, student, tested or device, run.processes.rank)
    trace, moments = Trace(), []
    for iteration, batch in enumerate(batches):
        before = program.meters.clone()
        depth = join_draws(draws.begin(iteration), micro_batches, draws.views)
        step(batch, plan.inputs(iteration, depth))
        step.read_back()
        trace.losses.append((program.meters - before).cpu()[METERS.index("loss")])
        if not gradients:
            continue
        named = [
            (name, optimizer.state.get(parameter)) for name, parameter in student.named_parameters()
        ]
        moments.append({name: device.to_host(state["exp_avg"]) for name, state in named if state})
    trace.gradients = _find_gradients(moments, BETAS[0]) if gradients else {}
    trace.student, trace.teacher = (
        device.to_host(network.state_dict()) for network in (student, teacher)
    )
    trace.center = device.to_host(program.center)
    return trace


def join_draws(depth: Tensor | None, parts: int, views: int) -> Tensor | None:
    """Merge the stochastic depth of many small micro-batches into that of `parts` larger ones.

    (n, 2 L, V b) -> (parts, 2 L, V b n / parts) with V = `views`; images are ordered by view first.
    """
    if depth is None:
        return None
    by_view = torch.unflatten(depth, 2, (views, -1))
    return torch.unflatten(by_view, 0, (parts, -1)).permute(0, 2, 3, 1, 4).flatten(2)


def _find_gradients(moments: Sequence[Mapping[str, Tensor]], decay: float) -> dict[str, Tensor]:
    gradients = {}
    for name in moments[0]:
        after = torch.stack([by_name[name] for by_name in moments])
        before = torch.cat([torch.zeros_like(after[:1]), after[:-1]])
        gradients[name] = (after - decay * before) / (1 - decay)
    return gradients


def compare(one: Trace, other: Trace) -> Iterator[Difference]:
    """Yield the differences between two traces of the same steps: loss, center, each parameter."""

    def differ(what: str, name: str, left: Tensor, right: Tensor) -> Difference:
        apart = (left.float() - right.float()).abs() / right.float().abs().max().clamp(min=1.0)
        return Difference(what=what, name=name, most=float(apart.max()), mean=float(apart.mean()))

    assert one.center is not None and other.center is not None
    yield differ(
        "loss", f"{len(one.losses)} steps", torch.stack(one.losses), torch.stack(other.losses)
    )
    yield differ("centre", "", one.center, other.center)
    for what in ("gradients", "student", "teacher"):
        left, right = getattr(one, what), getattr(other, what)
        yield from (differ(what, name, left[name], right[name]) for name in left)
