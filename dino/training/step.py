"""One step of DINO as a program that any device can run: views in, a moved student, teacher and center out.

Shapes: B images of one micro-batch and device, V views, C channels, S side, K prototypes, D width.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from dino.data.crops import Crops
from dino.data.photometric import Normalization, augment, forget_constants
from dino.devices.base import StepInputs
from dino.models.head import PrototypeLayer
from dino.models.multicrop import MultiCrop
from dino.training.ema import update_teacher
from dino.training.loss import (
    compute_feature_spread,
    compute_loss,
    compute_loss_of_logits,
    compute_targets,
    update_center,
)
from dino.training.optim import UpdateInputs, clip_gradients

METERS = (  # names of the sums kept on the device; "steps" counts the steps that were not masked
    "steps",
    "loss",
    "entropy",
    "divergence",
    "feature_std",
    "centre_norm",
    "grad_norm",
)
STORED = {"centre": "center", "non_finite": "non_finite", "meters": "meters"}  # name in a checkpoint: attribute
NON_FINITE_LIMIT = 5  # masked steps in a row that end the run


class StepOutput(NamedTuple):
    """What a forward pass gives; every field may be averaged over micro-batches and processes.

    Attributes:
        loss: () float32, with gradient.
        batch_center: (1, K) float32, mean teacher logits.
        entropy: () teacher entropy in nats.
        divergence: () teacher divergence in nats.
        feature_std: () spread of the teacher's features, 0 to about 1.
    """

    loss: Tensor
    batch_center: Tensor
    entropy: Tensor
    divergence: Tensor
    feature_std: Tensor


class Update(NamedTuple):
    """What `before_update` decided and `after_update` carries out; all () float32 but the averaged output.

    Attributes:
        mean: Output averaged over micro-batches and processes.
        grad_norm: Norm of all gradients before clipping.
        keep: 1 to update, 0 to mask the step.
        finite: 0 if the step counts as non-finite.
        momentum: Of the teacher; 1 in a masked step.
    """

    mean: StepOutput
    grad_norm: Tensor
    keep: Tensor
    finite: Tensor
    momentum: Tensor


class DinoProgram:
    """The step's phases and what they leave behind: center, counters, meters.

    Attributes:
        center: (1, K) float32.
        non_finite: (2,) float32: masked steps in all, and in a row (which stays at the limit once it got there).
        meters: (len(METERS),) float32, sums over the epoch's finite steps.
    """

    def __init__(
        self,
        *,
        student: nn.Module,
        teacher: nn.Module,
        prototypes: int,
        normalization: Normalization,
        clip_grad: float,
        resolutions: int = 2,
        autocast: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
        average: Callable[[Tensor], Callable[[], Tensor]] = lambda tensor: lambda: tensor,
        eager: bool = False,
        fused: bool = False,
    ) -> None:
        """Bind the networks.

        Args:
            student: MultiCrop, possibly wrapped for data parallelism.
            teacher: MultiCrop without gradients.
            prototypes: K.
            normalization: Of the pixels.
            clip_grad: Largest norm of one gradient tensor; 0 for none.
            resolutions: 2, or 1 without local views.
            autocast: Number format of the networks; the loss is always fp32.
            average: Begins to take the mean of a tensor over all processes; what it gives waits for it.
            eager: Whether augmentation may look at its parameters.
            fused: Whether the device has torch's kernels for lists of tensors.
        """
        device = next(teacher.parameters()).device
        self.student, self.teacher = student, teacher
        self.normalization, self.clip_grad, self.resolutions = normalization, clip_grad, resolutions
        self._augment = functools.partial(augment, normalization=normalization, eager=eager)
        self.autocast, self.average = autocast, average
        self._clip = functools.partial(clip_gradients, max_norm=clip_grad, fused=fused)
        self.center = torch.zeros(1, prototypes, device=device)
        self.non_finite = torch.zeros(2, device=device)
        self.meters = torch.zeros(len(METERS), device=device)

    def augment(self, batch: Crops) -> tuple[Tensor, ...]:
        """Crops (B, v, S, S, C) -> one (v B, C, S, S) float32 a resolution, ordered by view, then image.

        Pixels that are float32 already were augmented by the loaders.
        """
        with torch.no_grad():
            groups = (
                (batch.global_pixels, batch.global_parameters),
                (batch.local_pixels, batch.local_parameters),
            )
            ordered = [[part.transpose(0, 1).flatten(0, 1) for part in group] for group in groups if group[0].shape[1]]
            return tuple(
                pixels if pixels.is_floating_point() else self._augment(pixels.movedim(-1, 1), rows)
                for pixels, rows in ordered
            )

    def copy_statistics(self) -> list[Tensor]:
        """Statistics of batch norm before a step, so that a masked step can be taken out of them too."""
        return [buffer.clone() for buffer in self._buffers()]

    def forward(self, views: Sequence[Tensor], inputs: StepInputs, center: Tensor | None = None) -> StepOutput:
        """Pure but for batch norm's statistics.

        Args:
            views: As `augment` gives them, the global ones first.
            inputs: Of this step.
            center: (1, K) float32, where it is an input of a compiled step; else the program's own.
        """
        with torch.no_grad(), self.autocast():
            features, vectors = self.teacher(views[0])
            teacher_logits = _last_layer(self.teacher)(vectors)
        traced = center is not None
        targets = compute_targets(teacher_logits, self.center if center is None else center, inputs.temperature)
        with self.autocast():
            _, vectors = self.student(*views, depth=inputs.depth)
            loss = self._compute_loss(vectors, targets.probabilities, traced=traced)
        return StepOutput(
            loss=loss,
            batch_center=targets.batch_center,
            entropy=targets.entropy,
            divergence=targets.divergence,
            feature_std=compute_feature_spread(features),
        )

    def _compute_loss(self, vectors: Tensor, targets: Tensor, *, traced: bool) -> Tensor:
        layer = _last_layer(self.student)
        if traced:
            return compute_loss_of_logits(layer(vectors), targets)
        return compute_loss(vectors, layer.weight_v, layer.weight_g, targets)

    def exchange(self, outputs: Sequence[Tensor]) -> Callable[[], StepOutput]:
        """Begin to average over processes, in one collective for all of it; the result waits for its end."""
        fields = StepOutput(*outputs)
        wait = self.average(torch.cat([field.detach().reshape(-1) for field in fields]))

        def finish() -> StepOutput:
            parts = torch.split(wait(), [field.numel() for field in fields])
            return StepOutput(*(part.reshape(field.shape) for part, field in zip(parts, fields, strict=True)))

        return finish

    def before_update(
        self, exchanged: Callable[[], StepOutput], inputs: StepInputs, loss_scale: Tensor | None = None
    ) -> tuple[UpdateInputs, Update]:
        """Clip, and mask the update where anything is not finite.

        Under a loss scale gradients overflow now and then, which lowers the scale and is masked but does not count;
        where the scale has no room left it is no overflow.
        """
        grad_norm, gradients_finite = self._clip(self.student.parameters())
        mean = exchanged()
        loss_finite = torch.isfinite(mean.loss).float()
        keep = gradients_finite * loss_finite
        finite = keep if loss_scale is None else torch.where(loss_scale > 1.0, loss_finite, keep)
        update = Update(
            mean=mean,
            grad_norm=grad_norm,
            keep=keep,
            finite=finite,
            momentum=1.0 - keep * (1.0 - inputs.momentum),
        )
        return UpdateInputs(inputs.learning_rate, inputs.weight_decay, keep, keep * inputs.train_last_layer), update

    def after_update(self, update: Update, statistics: Sequence[Tensor]) -> None:
        """Move the teacher and the center, count what was masked, add to the meters.

        Args:
            update: What `before_update` decided.
            statistics: What `copy_statistics` gave before the first forward pass.
        """
        keep = update.keep > 0
        with torch.no_grad():
            update_teacher(self.teacher, self.student, update.momentum)
            for buffer, before in zip(self._buffers(), statistics, strict=True):
                buffer.copy_(torch.where(keep, buffer, before))
        self._record(update)

    def forget_constants(self) -> None:
        """See `WholeProgram`."""
        forget_constants()

    def record(self, outputs: Sequence[Tensor]) -> None:
        """For devices that clip and update by themselves, so that a step cannot be masked any more, only counted.

        Args:
            outputs: What `forward` gave, averaged over micro-batches.
        """
        mean = self.exchange(outputs)()
        finite = torch.isfinite(mean.loss).float()
        unknown = torch.full_like(finite, math.nan)
        self._record(Update(mean=mean, grad_norm=unknown, keep=finite, finite=finite, momentum=unknown))

    def _record(self, update: Update) -> None:
        """Centre, counters, meters."""
        mean, keep = update.mean, update.keep > 0
        with torch.no_grad():
            self.center = torch.where(keep, update_center(self.center, mean.batch_center), self.center)
            self.non_finite = count_non_finite(self.non_finite, update.finite)
            sample = torch.stack(
                [
                    update.keep,
                    *(mean.loss, mean.entropy, mean.divergence, mean.feature_std),
                    self.center.norm(),
                    update.grad_norm,
                ]
            )
            self.meters = self.meters + torch.where(keep, sample, 0.0)

    def _buffers(self) -> list[Tensor]:
        """Statistics of batch norm, which forward passes move; what no checkpoint holds is constant."""
        return [
            buffer
            for network in (self.student, self.teacher)
            for part in network.modules()
            for name, buffer in part._buffers.items()
            if buffer is not None and name not in part._non_persistent_buffers_set
        ]

    def no_sync(self) -> AbstractContextManager[object]:
        """No exchange of gradients inside, where the student is data parallel."""
        hold: Callable[[], AbstractContextManager[object]] = getattr(self.student, "no_sync", contextlib.nullcontext)
        return hold()

    def state_dict(self) -> dict[str, Any]:
        """Center, counters and meters."""
        return {stored: getattr(self, name) for stored, name in STORED.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; what it does not hold stays."""
        for stored, name in STORED.items():
            if stored in state:
                setattr(self, name, state[stored].to(self.center.device))


def count_non_finite(counters: Tensor, finite: Tensor) -> Tensor:
    """Next (2,) counters: masked steps in all, and in a row; `finite` is () 1 or 0."""
    total, row = counters.unbind()
    masked = 1.0 - finite
    next_row = torch.where(row >= NON_FINITE_LIMIT, row, (row + 1.0) * masked)
    return torch.stack([total + masked, next_row])


def _last_layer(network: nn.Module) -> PrototypeLayer:
    """Of a MultiCrop, wrapped for data parallelism or not."""
    return cast(MultiCrop, getattr(network, "module", network)).head.last_layer
