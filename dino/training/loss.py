"""The DINO loss (paper, equation 2 and algorithm 1), as a pure function: nothing remembered, nothing read back.

Shapes: B images, V views of which the first 2 are global, K prototypes. Rows are ordered by view, then by image.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STUDENT_TEMPERATURE = 0.1  # paper, section 3.1
CENTRE_MOMENTUM = 0.9  # paper, section 3.1


class TeacherTargets(NamedTuple):
    """What the teacher says about the global views.

    Attributes:
        probabilities: (2, B, K) float32, rows sum to 1.
        batch_centre: (1, K) float32, mean of the raw logits.
        entropy: () mean entropy of a row in nats; ln K when uniform.
        divergence: () mean Kullback-Leibler divergence of a row from their mean in nats; 0 when all are the same.
    """

    probabilities: Tensor
    batch_centre: Tensor
    entropy: Tensor
    divergence: Tensor


def compute_targets(logits: Tensor, centre: Tensor, temperature: Tensor) -> TeacherTargets:
    """Centre and sharpen the teacher's logits.

    Args:
        logits: (2 B, K), any float type; no gradient flows.
        centre: (1, K) float32.
        temperature: () float32, above 0.
    """
    logits = logits.detach().float()
    log_probabilities = F.log_softmax((logits - centre) / temperature, dim=-1)
    probabilities = log_probabilities.exp()
    mean = probabilities.mean(dim=0)
    entropy = -(probabilities * log_probabilities).sum(dim=-1).mean()
    divergence = -(mean * mean.clamp(min=1e-30).log()).sum() - entropy
    return TeacherTargets(probabilities.unflatten(0, (2, -1)), logits.mean(dim=0, keepdim=True), entropy, divergence)


def compute_loss(student_logits: Tensor, targets: Tensor, *, traced: bool = False) -> Tensor:
    """Mean cross-entropy between each global target and the student's every other view.

    Args:
        student_logits: (V B, K), any float type.
        targets: (2, B, K) float32, rows sum to 1.
        traced: For a compiler that makes the backward pass from the forward one; else the backward pass is our own.

    Returns:
        () float32: -1 / (B T) times the sum of p log q over images and the T = 2 V - 2 pairs of different views.
    """
    if traced:
        return _cross_entropy(student_logits, targets)
    loss: Tensor = _CrossEntropy.apply(student_logits, targets)
    return loss


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    views = logits.split(targets.shape[1])
    total = torch.zeros((), device=logits.device)
    for view, (target, _) in zip(views, _pair(targets, len(views)), strict=True):
        total = total - (target * F.log_softmax(view.float() / STUDENT_TEMPERATURE, dim=-1)).sum()
    return total / _count_pairs(logits, targets)


class _CrossEntropy(torch.autograd.Function):
    """View by view and the softmax twice, so that nothing of the size of all views' logits is kept but these."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.save_for_backward(logits, targets)
        return _cross_entropy(logits, targets)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        logits, targets = ctx.saved_tensors
        views, gradients = logits.split(targets.shape[1]), []
        scale = upstream / (_count_pairs(logits, targets) * STUDENT_TEMPERATURE)
        for view, (target, mass) in zip(views, _pair(targets, len(views)), strict=True):
            softmax = F.softmax(view.float() / STUDENT_TEMPERATURE, dim=-1)
            gradients.append(softmax.mul_(mass).sub_(target).mul_(scale).to(logits.dtype))
        return torch.cat(gradients), None


def _count_pairs(logits: Tensor, targets: Tensor) -> int:
    """Pairs of different views over all images."""
    return 2 * len(logits) - 2 * targets.shape[1]


def _pair(targets: Tensor, views: int) -> list[tuple[Tensor, float]]:
    """For each view the sum of the targets of other views, (B, K), and the sum of a row of it."""
    both = targets.sum(dim=0)
    return [(targets[1], 1.0), (targets[0], 1.0), *[(both, 2.0)] * (views - 2)]


def update_centre(centre: Tensor, batch_centre: Tensor, momentum: Tensor | float = CENTRE_MOMENTUM) -> Tensor:
    """The next centre (paper, equation 4): (1, K), (1, K) -> (1, K)."""
    return centre * momentum + batch_centre * (1 - momentum)


def compute_feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalised features, averaged over dimensions, times sqrt(D).

    Args:
        features: (B, D).

    Returns:
        () float32: 0 when all features are the same, near 1 when they point everywhere.
    """
    unit = F.normalize(features.detach().float(), dim=-1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[-1])


def diagnose_collapse(*, entropy: float, divergence: float, prototypes: int) -> str | None:
    """Say in one line which collapse the teacher's outputs show, if any (paper, section 5.3).

    Args:
        entropy: Mean entropy of a target in nats.
        divergence: Mean divergence of a target from the mean target in nats.
        prototypes: K.
    """
    most = math.log(prototypes)
    if entropy > 0.98 * most:
        return (
            f"uniform collapse: teacher entropy {entropy:.3f} of at most ln K = {most:.3f}; "
            "try a lower --teacher_temp, a smaller --out_dim, or a higher --lr"
        )
    if divergence < 1e-3 * most:
        return (
            f"constant collapse: all teacher outputs agree (divergence {divergence:.2g} nats); "
            "try a higher --momentum_teacher, a lower --lr, a longer --freeze_last_layer, or a higher --teacher_temp"
        )
    return None
