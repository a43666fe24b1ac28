"""One training step of DINO as a module that a compiler can trace as a whole.

The functions of the compiler are arguments.
Shapes: N micro-batches per call, B images per micro-batch, V views, K prototypes, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.devices.ipu.pipeline import Placement

# Fields of a step's inputs, in order.
FIELDS = ("learning_rate", "weight_decay", "momentum", "temperature", "train_last_layer")


@runtime_checkable
class TracedProgram(Protocol):
    """A program with a step that can be compiled as a whole; the host sees its outputs.

    Attributes:
        student: Network with the parts `backbone` and `head`.
        teacher: The same, without gradients.
        center: (1, K) float32, in host memory.
        clip_grad: Largest gradient norm; 0 disables clipping.
        student_temperature: Divisor of the student's logits.
    """

    student: nn.Module
    teacher: nn.Module
    center: Tensor
    clip_grad: float
    student_temperature: float

    def augment(self, batch: Any) -> tuple[Tensor, ...]:
        """Make the views of one micro-batch, one tensor per resolution, global views first."""

    def compute_targets(self, vectors: Tensor, center: Tensor, temperature: Tensor) -> Any:
        """Turn the teacher's vectors (2 B, D), center (1, K) and temperature () into targets.

        All are float32. Targets have the attributes probabilities (2, B, K), batch_center (1, K),
        entropy () and divergence ().
        """

    def compute_feature_spread(self, features: Tensor) -> Tensor:
        """Return the spread () of the teacher's features (2 B, D)."""

    def begin_average(self, outputs: Any) -> Callable[[], Any]:
        """Start averaging over processes; returns a function that waits for the mean.

        `outputs` is one tuple of loss (), batch center (1, K) and the three statistics ().
        """

    def record(self, mean: Any, *, grad_norm: Tensor, keep: Tensor, finite: Tensor) -> None:
        """Update center, counters and meters from the mean; the networks are already updated."""


class TracedStep(nn.Module):
    """The teacher's update, both networks and the loss of one micro-batch.

    The compiler adds the backward pass and the optimizer's update.
    """

    def __init__(
        self,
        program: TracedProgram,
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
            program: Provides the formulas to trace.
            placement: The chip of each part.
            example: A batch; its empty and its int64 fields do not go to the device.
            number_type: The type of activations.
            mark_loss: Marks the loss for the compiler.
            begin_chip: Sets the chip of the next ops; does nothing with a single chip.
            move: Updates a teacher's tensor: student, teacher, momentum.
        """
        super().__init__()
        self.student, self.teacher = program.student, program.teacher
        self.program, self.placement, self.number_type = program, placement, number_type
        self.mark_loss, self.begin_chip, self.move = mark_loss, begin_chip, move
        self.kind, self.travels = type(example), [_travels(field) for field in example]
        # Only the shape of a field that stays matters; a view would keep the whole batch alive.
        self.stays = [
            None if travels else field[:1].clone()
            for travels, field in zip(self.travels, example, strict=True)
        ]
        names = [name for name, _ in self.student.named_parameters()]
        self.by_chip = {
            chip: [n for n in names if placement.chip_of(n) == chip]
            for chip in range(placement.chips)
        }

    def fields(self, batch: Any) -> tuple[Tensor, ...]:
        """Return the fields of a batch that go to the device."""
        return tuple(field for field, travels in zip(batch, self.travels, strict=True) if travels)

    def forward(
        self,
        fields: tuple[Tensor, ...],
        numbers: Tensor,
        center: Tensor,
        depth: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Compute one micro-batch.

        Args:
            fields: From the method `fields`.
            numbers: (1, 5) float32, a row of FIELDS; a momentum of 1 leaves the teacher unchanged.
            center: (1, K) float32.
            depth: (1, 2 L, V B) float32 factors of stochastic depth, or None.

        Returns:
            () loss, (1, K) batch center and (1, 3) entropy, divergence and feature spread, all
            float32.
        """
        inputs = dict(zip(FIELDS, numbers.unbind(1), strict=True))
        self._move_teacher(inputs["momentum"])
        self.begin_chip(0)
        views = [view.to(self.number_type) for view in self.program.augment(self._join(fields))]
        with torch.no_grad():
            features, vectors = self.teacher(views[0])
            targets = self.program.compute_targets(vectors, center, inputs["temperature"])
        _, vectors = self.student(*views, depth=None if depth is None else depth[0])
        logits = self.student.get_submodule("head.last_layer")(vectors)
        loss = compute_loss_of_logits(
            logits, targets.probabilities, self.program.student_temperature
        )
        spread = self.program.compute_feature_spread(features)
        statistics = (targets.entropy, targets.divergence, spread)
        return self.mark_loss(loss), targets.batch_center, torch.stack(statistics).reshape(1, -1)

    def _join(self, fields: Sequence[Tensor]) -> Any:
        """Rebuild the batch from the fields on the device and those that stayed on the host."""
        sent = iter(fields)
        pairs = zip(self.travels, self.stays, strict=True)
        return self.kind(*(next(sent) if travels else stays for travels, stays in pairs))

    def _move_teacher(self, momentum: Tensor) -> None:
        students, teachers = dict(self.student.named_parameters()), name_tensors(self.teacher)
        with torch.no_grad():
            for chip, names in self.by_chip.items():
                if names:
                    self.begin_chip(chip)
                for name in names:
                    self.move(students[name], teachers[name], momentum)


def compute_loss_of_logits(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """The loss of `training/loss.py` as a plain formula that the compiler can differentiate.

    Args:
        logits: (V B, K) student logits, any float type.
        targets: (2, B, K) float32, rows sum to 1.
        temperature: The student's temperature.

    Returns:
        () float32.
    """
    images = targets.shape[1]
    views = torch.split(logits, images)
    both = targets.sum(dim=0)
    total = torch.zeros((), device=logits.device)
    compared = [targets[1], targets[0], *[both] * (len(views) - 2)]
    for view, target in zip(views, compared, strict=True):
        total = total - (target * F.log_softmax(view.float() / temperature, dim=-1)).sum()
    pairs = 2 * len(logits) - 2 * images  # pairs of different views over all images
    return total / pairs


class ErfGelu(nn.Module):
    """The exact GELU, x (1 + erf(x / sqrt 2)) / 2, for compilers that use tanh for nn.GELU."""

    def __init__(self, widened: bool) -> None:
        """If `widened`, compute in float32 and return the input's type."""
        super().__init__()
        self.widened = widened

    def forward(self, values: Tensor) -> Tensor:
        """Apply it to values of any shape."""
        wide = values.float() if self.widened else values
        return (0.5 * wide * (1.0 + torch.erf(wide * math.sqrt(0.5)))).to(values.dtype)


def replace_gelu(network: nn.Module, *, widened: bool) -> None:
    """Replace every GELU of a network with `ErfGelu`, in place."""
    for name, part in list(network.named_modules()):
        if isinstance(part, nn.GELU):
            parent = network.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], ErfGelu(widened))


def narrow_tokens(network: nn.Module, number_type: torch.dtype) -> None:
    """Make the blocks compute in `number_type`.

    CLS token and position are float32 weights; adding them widens the tokens.
    """
    for block in list(getattr(network.backbone, "blocks", ()))[:1]:
        block.register_forward_pre_hook(lambda _, args: (args[0].to(number_type), *args[1:]))


def hold_as_buffers(network: nn.Module) -> None:
    """Turn parameters into buffers of the same names, which a forward pass may change in place."""
    for part in network.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                delattr(part, name)
                part.register_buffer(name, parameter.data)


def name_tensors(network: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def ema_update(student: Tensor, teacher: Tensor, momentum: Tensor) -> None:
    """Teacher <- m teacher + (1 - m) student, in place, computed in float32 for any types.

    A momentum of 1 changes nothing, to the bit.
    """
    teacher.copy_(teacher.float() * momentum + student.float() * (1 - momentum))


def _travels(field: Tensor) -> bool:
    return field.numel() > 0 and field.dtype != torch.int64
