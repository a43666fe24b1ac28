"""One training step as a module that a compiler can trace whole; the compiler's names are handed in.

Shapes: N micro-batches of one call, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dino.devices.base import StepInputs, WholeProgram
from dino.devices.pipeline import Placement

Pair = tuple[nn.Parameter, Tensor]


class WholeStep(nn.Module):
    """Teacher's move, both networks and the loss of one micro-batch; the compiler adds backward and update."""

    def __init__(
        self,
        program: WholeProgram,
        placement: Placement,
        *,
        example: Any,
        number_type: torch.dtype,
        mark_loss: Callable[[Tensor], Tensor],
        begin_chip: Callable[[int], None],
        move: Callable[[Tensor, Tensor, Tensor], None],
    ) -> None:
        """Bind the networks.

        Args:
            program: Whose `augment` and `forward` are traced.
            placement: Which chip holds what.
            example: A batch; its empty fields, and its whole numbers, do not go to the device.
            number_type: Of activations.
            mark_loss: Tells the compiler which tensor the loss is.
            begin_chip: Tells it on which chip the next ops run; does nothing where there is one.
            move: Moves a teacher's tensor: student, teacher, momentum.
        """
        super().__init__()
        self.student, self.teacher = program.student, program.teacher
        self.program, self.placement, self.number_type = program, placement, number_type
        self.mark_loss, self.begin_chip, self.move = mark_loss, begin_chip, move
        self.kind, self.travels = type(example), [_travels(field) for field in example]
        # Of what does not travel only the shape matters; a copy, since a view would keep the whole batch.
        self.stays = [
            None if travels else field[:1].clone() for travels, field in zip(self.travels, example, strict=True)
        ]
        names = [name for name, _ in self.student.named_parameters()]
        self.by_chip = {chip: [n for n in names if placement.chip_of(n) == chip] for chip in range(placement.chips)}

    def fields(self, batch: Any) -> tuple[Tensor, ...]:
        """The part of a batch that goes to the device."""
        return tuple(field for field, travels in zip(batch, self.travels, strict=True) if travels)

    def forward(
        self, fields: tuple[Tensor, ...], numbers: Tensor, center: Tensor, depth: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """One micro-batch.

        Args:
            fields: As `fields` gives them.
            numbers: (1, 5) float32, a row of `StepInputs`; a momentum of 1 leaves the teacher as it is.
            center: (1, K) float32.
            depth: (1, 2 L, V B) float32, or None, as `StepInputs` has it.

        Returns:
            () loss, (1, K) batch center and (1, 3) entropy, divergence and spread of features, all float32.
        """
        inputs = StepInputs(*numbers.unbind(1))._replace(depth=None if depth is None else depth[0])
        self._move_teacher(inputs.momentum)
        self.begin_chip(0)
        given = iter(fields)
        parts = zip(self.travels, self.stays, strict=True)
        batch = self.kind(*(next(given) if travels else stays for travels, stays in parts))
        views = [view.to(self.number_type) for view in self.program.augment(batch)]
        loss, batch_center, *statistics = self.program.forward(views, inputs, center)
        return self.mark_loss(loss), batch_center, torch.stack(statistics).reshape(1, -1)

    def _move_teacher(self, momentum: Tensor) -> None:
        students, teachers = dict(self.student.named_parameters()), name_tensors(self.teacher)
        with torch.no_grad():
            for chip, names in self.by_chip.items():
                if names:
                    self.begin_chip(chip)
                for name in names:
                    self.move(students[name], teachers[name], momentum)


class ErfGelu(nn.Module):
    """The exact GELU written out, x (1 + erf(x / sqrt 2)) / 2, for compilers that take nn.GELU for its tanh form."""

    def __init__(self, widened: bool) -> None:
        """`widened`: compute in float32 and give the input's type back."""
        super().__init__()
        self.widened = widened

    def forward(self, values: Tensor) -> Tensor:
        """Any shape."""
        wide = values.float() if self.widened else values
        return (0.5 * wide * (1.0 + torch.erf(wide * math.sqrt(0.5)))).to(values.dtype)


def replace_gelu(network: nn.Module, *, widened: bool) -> None:
    """Write out every GELU of a network, in place."""
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.GELU):
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], ErfGelu(widened))


def narrow_tokens(network: nn.Module, number_type: torch.dtype) -> None:
    """Compute the blocks in `number_type`: CLS token and position are float32 weights, and adding them widens."""
    for block in list(getattr(network.backbone, "blocks", ()))[:1]:
        block.register_forward_pre_hook(lambda _, given: (given[0].to(number_type), *given[1:]))


def hold_as_buffers(network: nn.Module) -> None:
    """Turn parameters into buffers of the same names: what a forward pass may change in place."""
    for part in network.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                delattr(part, name)
                part.register_buffer(name, parameter.data)


def name_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def ema_update(student: Tensor, teacher: Tensor, momentum: Tensor) -> None:
    """Teacher <- m teacher + (1 - m) student, in place, computed in float32 whatever the two are.

    A momentum of 1 changes nothing, to the bit.
    """
    teacher.copy_(teacher.float() * momentum + student.float() * (1 - momentum))


def _travels(field: Tensor) -> bool:
    return field.numel() > 0 and field.dtype != torch.int64
