"""The command: `python -m dino.devices.align --device ipu --reference cpu`; how far two devices train apart."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dino.errors import CheckFailed, exit_code
from dino.flags import AlignOptions, DeviceFlags
from dino.options import parse

if TYPE_CHECKING:
    from torch import Tensor

    from dino.data.crops import Crops
    from dino.devices.base import Device
    from dino.training.plan import Plan

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Trace:
    """What a device computed, all float32 in host memory.

    Attributes:
        losses: () of each step.
        gradients: By parameter, (steps, ...): what the optimiser took in.
        student: By parameter, after the last step.
        teacher: As the student.
        centre: (1, K) after the last step.
    """

    losses: list[Tensor] = field(default_factory=list)
    gradients: Mapping[str, Tensor] = field(default_factory=dict)
    student: Mapping[str, Tensor] = field(default_factory=dict)
    teacher: Mapping[str, Tensor] = field(default_factory=dict)
    centre: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far the numbers of one tensor are apart, over the largest of them where that is above 1."""

    what: str
    name: str
    most: float
    mean: float


def trace_steps(
    options: AlignOptions, device: Device, plan: Plan, batches: Sequence[Crops], tested: Device | None = None
) -> Trace:
    """Train on `batches`, one a step, from the weights of `--seed`.

    Gradients come from the optimiser's first moments, m' = b m + (1 - b) g, which every device gives back.

    Args:
        options: Of the networks.
        device: Where.
        plan: Of the inputs of each step.
        batches: In host memory, each what one call of the device under test takes.
        tested: That device, whose micro-batches stochastic depth is drawn for; by default `device`.
    """
    from dino.runtime.context import Run
    from dino.runtime.distributed import Launch, Processes
    from dino.training.build import build_networks, build_program
    from dino.training.draws import StepDraws
    from dino.training.optim import build_optimizer
    from dino.training.step import METERS

    run = Run(device=device, processes=Processes(Launch(), device.collective_backend, "env://"))
    student, teacher = build_networks(options, run)
    program = build_program(options, student, teacher, run)
    optimizer = build_optimizer("adamw", student, eps=options.optim.eps)
    parts = device.count_micro_batches(options.run.accumulate_steps)
    step = device.compile_train(program, optimizer, parts)
    draws = StepDraws(options, student, tested or device)
    trace, moments = Trace(), []
    for iteration, batch in enumerate(batches):
        before = program.meters.clone()
        step(batch, plan.inputs(iteration), join_draws(draws.begin(iteration), parts, draws.views))
        step.read_back()
        trace.losses.append((program.meters - before).cpu()[METERS.index("loss")])
        named = [(name, optimizer.state.get(parameter)) for name, parameter in student.named_parameters()]
        moments.append({name: device.to_host(state["exp_avg"]) for name, state in named if state})
    trace.gradients = _find_gradients(moments, optimizer.betas[0])
    trace.student, trace.teacher = (device.to_host(network.state_dict()) for network in (student, teacher))
    trace.centre = device.to_host(program.centre)
    return trace


def join_draws(depth: Tensor | None, parts: int, views: int) -> Tensor | None:
    """Stochastic depth of `parts` large micro-batches from that of many small ones of `views` views each.

    (n, 2 L, V b) -> (parts, 2 L, V b n / parts): images are ordered by view first.
    """
    if depth is None:
        return None
    return depth.unflatten(2, (views, -1)).unflatten(0, (parts, -1)).permute(0, 2, 3, 1, 4).flatten(2)


def _find_gradients(moments: Sequence[Mapping[str, Tensor]], decay: float) -> dict[str, Tensor]:
    import torch

    found = {}
    for name in moments[0]:
        after = torch.stack([each[name] for each in moments])
        before = torch.cat([torch.zeros_like(after[:1]), after[:-1]])
        found[name] = (after - decay * before) / (1 - decay)
    return found


def compare(one: Trace, other: Trace) -> Iterator[Difference]:
    """Yield the differences of two traces of the same steps: loss, centre, then each parameter's."""
    import torch

    def differ(what: str, name: str, left: Tensor, right: Tensor) -> Difference:
        apart = (left.float() - right.float()).abs() / right.float().abs().max().clamp(min=1.0)
        return Difference(what=what, name=name, most=float(apart.max()), mean=float(apart.mean()))

    assert one.centre is not None and other.centre is not None
    yield differ("loss", f"{len(one.losses)} steps", torch.stack(one.losses), torch.stack(other.losses))
    yield differ("centre", "", one.centre, other.centre)
    for what in ("gradients", "student", "teacher"):
        left, right = getattr(one, what), getattr(other, what)
        yield from (differ(what, name, left[name], right[name]) for name in left)


def write_table(rows: Sequence[Difference]) -> Iterator[str]:
    """Yield the lines of a table, one a tensor."""
    width = max(len(row.name) for row in rows)
    yield f"{'':9} {'tensor':{width}} {'max':>9} {'mean':>9}"
    yield from (f"{row.what:9} {row.name:{width}} {row.most:9.2e} {row.mean:9.2e}" for row in rows)


def align(options: AlignOptions) -> list[Difference]:
    """Train on both devices and compare.

    Raises:
        DinoError: A device that cannot be had, or a layout that cannot be.
    """
    from dino.data.synthetic import make_batch
    from dino.devices import open_device
    from dino.devices.cpu import CpuDevice
    from dino.training.build import build_recipe
    from dino.training.plan import build_plan

    device = open_device(
        options.device, precision=options.precision, compiled=options.compiled, explicit=options.explicit
    )
    reference = open_device(DeviceFlags(device=options.align.reference))
    parts, steps, host = (
        device.count_micro_batches(options.run.accumulate_steps),
        options.align.steps,
        CpuDevice("fp32"),
    )
    size, recipe = options.data.batch_size_per_device * parts, build_recipe(options)
    batches = [
        make_batch(recipe, size, seed=options.run.seed + step, device=host.torch_device, place=host.place)
        for step in range(steps)
    ]
    plan = build_plan(options, iterations=-(-steps // options.run.epochs), world=1, device=device)
    logger.info("%s against %s: %d steps of %d images", device.describe(), reference.describe(), steps, size)
    return list(compare(*(trace_steps(options, each, plan, batches, device) for each in (device, reference))))


def main(argv: Sequence[str] | None = None) -> None:
    """Compare, and print the table.

    Raises:
        CheckFailed: A difference is larger than `--tolerance`.
    """
    options = parse(AlignOptions, argv)

    from dino.runtime.context import set_up_logging
    from dino.runtime.metrics import check_target, write_result

    set_up_logging()
    check_target(options.report.json)
    rows = align(options)
    for line in write_table(rows):
        logger.info("%s", line)
    worst = max(rows, key=lambda row: row.most)
    logger.info("largest difference: %.2e (%s %s)", worst.most, worst.what, worst.name)
    write_result(options.report.json, {f"{row.what} {row.name}".strip(): row.most for row in rows})
    if not worst.most <= options.align.tolerance:
        raise CheckFailed(
            f"{worst.what} {worst.name} differs by {worst.most:.2e}, more than {options.align.tolerance:g}"
        )


if __name__ == "__main__":
    sys.exit(exit_code(main))
