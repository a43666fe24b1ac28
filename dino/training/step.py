"""One step of DINO (paper, algorithm 1): `DinoProgram.step` is all of it, as eager devices run it.

Shapes: B images of one micro-batch on one device, V views, C channels, S side, K prototypes,
D width, L blocks.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dino.data.crops import Crops
from dino.data.photometric import Normalization, augment
from dino.devices.base import Engine
from dino.models.head import PrototypeLayer
from dino.models.multicrop import MultiCrop
from dino.runtime.exchange import Average, GradientExchange
from dino.training.chunks import Chunks
from dino.training.clipping import clip_gradients
from dino.training.ema import update_average
from dino.training.loss import (
    STUDENT_TEMPERATURE,
    Differentiate,
    TeacherTargets,
    compute_feature_spread,
    compute_loss,
    compute_targets,
    differentiate,
    update_center,
)
from dino.training.optim import UpdateInputs
from dino.training.step_values import (
    METERS,
    STORED,
    StepInputs,
    StepOutput,
    count_non_finite,
    list_statistics,
)

CompilePhase = Callable[..., Callable[..., Any]]  # Device.compile_phase


class Phases(NamedTuple):
    """The parts of a step that are functions of tensors, as the device runs them.

    Backward passes and exchanges between processes are between them.
    """

    augment: Callable[..., tuple[Tensor, ...]]
    run_teacher: Callable[..., tuple[TeacherTargets, Tensor]]
    differentiate: Differentiate
    update: Callable[..., None]


class DinoProgram:
    """Student, teacher and the state that steps update: center, counters, meters.

    Attributes:
        center: (1, K) float32.
        non_finite: (2,) float32: masked steps in total and in a row (stays at the limit).
        meters: (len(METERS),) float32, sums over the epoch's finite steps.
        enter: Called with the name of each phase of a step as it begins; measurements set it.
    """

    student_temperature = STUDENT_TEMPERATURE
    compute_feature_spread = staticmethod(compute_feature_spread)

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        prototypes: int,
        normalization: Normalization,
        clip_grad: float,
        average: Average = lambda tensor: lambda: tensor,
        exchange: GradientExchange | None = None,
        compile_phase: CompilePhase = lambda phase, **_: phase,
        loss_chunks: Chunks | None = None,
    ) -> None:
        """Bind the networks.

        Args:
            student: MultiCrop, possibly compiled.
            teacher: MultiCrop without gradients.
            prototypes: K.
            normalization: Mean and standard deviation of the pixels.
            clip_grad: Largest norm of one gradient tensor; 0 disables clipping.
            average: Starts averaging a tensor over all processes; returns a function that waits
                for the mean.
            exchange: Averages the gradients over processes; None for one process.
            compile_phase: Compiles a function of tensors for the device, or returns it unchanged.
            loss_chunks: See `compute_loss`.
        """
        device = next(teacher.parameters()).device
        self.student, self.teacher = student, teacher
        self.normalization, self.clip_grad = normalization, clip_grad
        self.average, self.loss_chunks = average, loss_chunks
        self.exchange = exchange or GradientExchange()
        self.center = torch.zeros(1, prototypes, device=device)
        self.non_finite = torch.zeros(2, device=device)
        self.meters = torch.zeros(len(METERS), device=device)
        self.enter: Callable[[str], None] = lambda phase: None
        self.parameters = list(student.parameters()), list(teacher.parameters())
        self.statistics = [*list_statistics(student), *list_statistics(teacher)]
        self.phases = Phases(
            compile_phase(self.augment),
            compile_phase(self.run_teacher, whole=False),  # a foreign network may not trace
            compile_phase(differentiate),
            compile_phase(self.update),
        )

    def step(self, engine: Engine, batch: Crops, inputs: StepInputs) -> None:
        """Train once on a batch, (micro-batches x B, ...) crops on the device.

        The host reads nothing. A non-finite step changes only the counters: `keep` multiplies every
        change by 0. With a loss scale (fp16), gradients overflow now and then. Such a step lowers
        the scale and is masked, but it counts as non-finite only if the scale is at its minimum.
        """
        before, outputs = self.copy_statistics(), list[StepOutput]()
        depths = [None] * engine.micro_batches if inputs.depth is None else inputs.depth.unbind()
        for crops, depth in zip(engine.split(batch), depths, strict=True):
            self.enter("augmentation")
            views = self.phases.augment(crops, eager=engine.reads_freely)

            self.enter("teacher")  # it sees the global views only
            with torch.no_grad(), engine.autocast():
                targets, spread = self.phases.run_teacher(views[0], self.center, inputs.temperature)

            self.enter("student")  # it sees all views
            with engine.autocast():
                _, vectors = self.student(*views, depth=depth)
                self.enter("loss")
                loss = self.compare(vectors, targets)

            outputs.append(StepOutput(loss.detach(), *targets[1:], spread))
            if len(outputs) == engine.micro_batches:  # exchanges overlap with the last backward
                finish_average = self.begin_average(outputs)
                self.exchange.begin()
            self.enter("backward")
            engine.backward(loss)

        self.enter("update")
        self.exchange.finish()
        loss_scale = engine.unscale()
        self.phases.update(engine, inputs, finish_average(), loss_scale, before)

    def augment(self, batch: Crops, *, eager: bool = False) -> tuple[Tensor, ...]:
        """Crops (B, v, S, S, C) -> one tensor (v B, C, S, S) float32 per resolution.

        Rows are ordered by view, then by image. Float32 pixels are already augmented.

        Args:
            batch: Crops on the device.
            eager: Whether the host may read the parameters.
        """
        with torch.no_grad():
            groups = (
                (batch.global_pixels, batch.global_parameters),
                (batch.local_pixels, batch.local_parameters),
            )
            ordered = [
                [part.transpose(0, 1).flatten(0, 1) for part in group]
                for group in groups
                if group[0].shape[1]
            ]
            return tuple(
                pixels
                if pixels.is_floating_point()
                else augment(pixels.movedim(-1, 1), rows, self.normalization, eager=eager)
                for pixels, rows in ordered
            )

    def run_teacher(
        self, views: Tensor, center: Tensor, temperature: Tensor
    ) -> tuple[TeacherTargets, Tensor]:
        """Global views (2 B, C, S, S) -> targets, and the spread () of the teacher's features."""
        features, vectors = self.teacher(views)
        logits = last_layer(self.teacher)(vectors)
        with torch.autocast(views.device.type, enabled=False):
            targets = compute_targets(logits, center, temperature)
            return targets, compute_feature_spread(features)

    def compare(self, vectors: Tensor, targets: TeacherTargets) -> Tensor:
        """Student's vectors (V B, D) -> loss ()."""
        layer = last_layer(self.student)
        return compute_loss(
            vectors,
            layer.weight_v,
            layer.weight_g,
            targets.probabilities,
            chunks=self.loss_chunks,
            differentiate=self.phases.differentiate,
        )

    def compute_targets(
        self, vectors: Tensor, center: Tensor, temperature: Tensor
    ) -> TeacherTargets:
        """Turn the teacher's vectors (2 B, D) into targets."""
        return compute_targets(last_layer(self.teacher)(vectors), center, temperature)

    def update(
        self,
        engine: Engine,
        inputs: StepInputs,
        mean: StepOutput,
        loss_scale: Tensor | None,
        before: Sequence[Tensor],
    ) -> None:
        """Clip the gradients, update student and teacher, and record the step.

        Args:
            engine: Holds the optimizer.
            inputs: The step's inputs.
            mean: Outputs averaged over micro-batches and processes.
            loss_scale: () scale that the gradients had, or None.
            before: Result of `copy_statistics` at the beginning of the step.
        """
        student, teacher = self.parameters
        grad_norm, gradients_finite = clip_gradients(
            student, self.clip_grad, fused=engine.fuses_updates, in_rows=not engine.reads_freely
        )
        loss_finite = torch.isfinite(mean.loss).float()
        keep = gradients_finite * loss_finite
        engine.update(
            UpdateInputs(
                inputs.learning_rate, inputs.weight_decay, keep, keep * inputs.train_last_layer
            )
        )
        momentum = 1.0 - keep * (1.0 - inputs.momentum)
        update_average(teacher, student, momentum, fused=engine.fuses_lists)
        self.restore_statistics(before, keep)
        finite = keep if loss_scale is None else torch.where(loss_scale > 1.0, loss_finite, keep)
        self.record(mean, grad_norm=grad_norm, keep=keep, finite=finite)

    def begin_average(self, outputs: Sequence[StepOutput]) -> Callable[[], StepOutput]:
        """Average over micro-batches and start averaging over processes, in one collective.

        Returns a function that waits for the result.
        """
        fields = [functools.reduce(operator.add, parts) for parts in zip(*outputs, strict=True)]
        if len(outputs) > 1:
            fields = [field / len(outputs) for field in fields]
        wait = self.average(torch.cat([field.reshape(-1) for field in fields]))

        def finish() -> StepOutput:
            means = torch.split(wait(), [field.numel() for field in fields])
            pairs = zip(means, fields, strict=True)
            return StepOutput(*(mean.reshape(field.shape) for mean, field in pairs))

        return finish

    def record(self, mean: StepOutput, *, grad_norm: Tensor, keep: Tensor, finite: Tensor) -> None:
        """Update the center, the counters and the meters.

        Args:
            mean: Outputs averaged over micro-batches and processes.
            grad_norm: () norm of all gradients before clipping; NaN if unknown.
            keep: () 1, or 0 in a masked step.
            finite: () 0 if the step counts as non-finite, else 1.
        """
        with torch.no_grad():
            kept = keep > 0
            moved = update_center(self.center, mean.batch_center)
            self.center = torch.where(kept, moved, self.center)
            self.non_finite = count_non_finite(self.non_finite, finite)
            statistics = (mean.loss, mean.entropy, mean.divergence, mean.feature_std)
            sample = torch.stack([keep, *statistics, self.center.norm(), grad_norm])
            self.meters = self.meters + torch.where(kept, sample, 0.0)

    def copy_statistics(self) -> list[Tensor]:
        """Copy the batch norm statistics before a step, so that a masked step can be undone."""
        return [buffer.clone() for buffer in self.statistics]

    def restore_statistics(self, before: Sequence[Tensor], keep: Tensor) -> None:
        """Restore the result of `copy_statistics` if `keep` () is 0."""
        with torch.no_grad():
            for buffer, old in zip(self.statistics, before, strict=True):
                buffer.copy_(torch.where(keep > 0, buffer, old))

    def state_dict(self) -> dict[str, Any]:
        """Return center, counters and meters."""
        return {stored: getattr(self, name) for stored, name in STORED.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load `state_dict`; entries that it lacks stay as they are."""
        for stored, name in STORED.items():
            if stored in state:
                setattr(self, name, state[stored].to(self.center.device))


def last_layer(network: nn.Module) -> PrototypeLayer:
    """Return the last layer of a MultiCrop, which may be compiled."""
    return cast(MultiCrop, network).head.last_layer
