"""The DINO loss (paper, equation 2 and algorithm 1) as a pure function without state or host reads.

Shapes: B images, V views (the first 2 are global), K prototypes, D width. Rows are ordered by view,
then by image.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.constants import keep_constant
from dino.training.chunks import CHUNK_ROWS, Chunks, add_product, join, multiply, scale_rows, split

STUDENT_TEMPERATURE = 0.1  # paper, section 3.1
CENTER_MOMENTUM = 0.9  # paper, section 3.1
HALF_BOOST = 64.0  # keeps the small numbers of a softmax in float16's normal range


class TeacherTargets(NamedTuple):
    """The teacher's targets for the global views, and their statistics.

    Attributes:
        probabilities: (2, B, K) float32, rows sum to 1.
        batch_center: (1, K) float32, mean of the raw logits.
        entropy: () mean entropy of a row in nats; ln K if the rows are uniform.
        divergence: () mean Kullback-Leibler divergence of a row from the mean row in nats; 0 if all
            rows are equal.
    """

    probabilities: Tensor
    batch_center: Tensor
    entropy: Tensor
    divergence: Tensor


def compute_targets(logits: Tensor, center: Tensor, temperature: Tensor) -> TeacherTargets:
    """Center and sharpen the teacher's logits.

    Args:
        logits: (2 B, K), any float type; no gradient flows through them.
        center: (1, K) float32.
        temperature: () float32, above 0.
    """
    logits = logits.detach().float()
    log_probabilities = F.log_softmax((logits - center) / temperature, dim=-1)
    probabilities = log_probabilities.exp()
    mean = probabilities.mean(dim=0)
    entropy = -(probabilities * log_probabilities).sum(dim=-1).mean()
    divergence = -(mean * mean.clamp(min=1e-30).log()).sum() - entropy
    return TeacherTargets(
        torch.unflatten(probabilities, 0, (2, -1)),
        logits.mean(dim=0, keepdim=True),
        entropy,
        divergence,
    )


def differentiate(
    vectors: Tensor, weight_v: Tensor, weight_g: Tensor, targets: Tensor, chunks: Chunks
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the loss () and its gradients for vectors, `weight_v` and `weight_g`.

    The arguments are those of `compute_loss`. Products run in the type that autocast or an op list
    chooses for the last layer.
    """
    dtype = F.linear(vectors[:1], weight_v[:1]).dtype
    with torch.autocast(vectors.device.type, enabled=False):
        length = torch.linalg.vector_norm(weight_v, dim=1, keepdim=True)
        scale = weight_g / length
        prototypes = scale_rows(weight_v, scale, dtype, chunks.prototypes)
        loss, to_vectors, to_weight = _differentiate(vectors.to(dtype), prototypes, targets, chunks)
        to_scale = [
            _pass_scaling(*parts)
            for parts in split(chunks.prototypes, to_weight, weight_v, scale, length)
        ]
        return loss, to_vectors.to(vectors.dtype), to_weight, join(to_scale) / length


Differentiate = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]


def compute_loss(
    vectors: Tensor,
    weight_v: Tensor,
    weight_g: Tensor,
    targets: Tensor,
    *,
    chunks: Chunks | None = None,
    differentiate: Differentiate = differentiate,
) -> Tensor:
    """Mean cross-entropy between each global target and all other views of the student.

    The function includes the last layer. Let s be the student's logits over its temperature. Then
    p log softmax(s) = p s - logsumexp(s), and the sum of p s over prototypes is the vector times
    the target's mean prototype. So a few rows of logits exist at a time. The same pass computes
    the gradients while those rows exist; they serve one backward pass.

    Args:
        vectors: (V B, D) input of the last layer, any float type.
        weight_v: (K, D) float32, directions of the last layer's rows.
        weight_g: (K, 1) float32, lengths of the last layer's rows.
        targets: (2, B, K) float32, rows sum to 1.
        chunks: What to hold at a time; by default `CHUNK_ROWS` rows of logits, all prototypes.
        differentiate: The function of that name, possibly compiled.

    Returns:
        () float32: -1 / (B T) times the sum of p log q over images and over the T = 2 V - 2 pairs
        of different views.
    """
    bound = functools.partial(differentiate, chunks=chunks or Chunks(CHUNK_ROWS, len(weight_v)))
    loss: Tensor = _PrototypeLoss.apply(vectors, weight_v, weight_g, targets, bound)
    return loss


class _PrototypeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        vectors: Tensor,
        weight_v: Tensor,
        weight_g: Tensor,
        targets: Tensor,
        differentiate: Callable[..., tuple[Tensor, ...]],
    ) -> Tensor:
        loss, *ctx.gradients = differentiate(vectors, weight_v, weight_g, targets)
        return loss

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        # Scaled in place: a second backward pass must fail instead of scaling twice.
        gradients, ctx.gradients = ctx.gradients, None
        pairs = zip(gradients, ctx.needs_input_grad, strict=False)
        scaled = (gradient.mul_(upstream) if needed else None for gradient, needed in pairs)
        return (*scaled, None, None)


def _differentiate(
    vectors: Tensor, prototypes: Tensor, targets: Tensor, chunks: Chunks
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss () and its gradients for vectors (V B, D) and prototypes (K, D), in float32.

    Matrix products run in the vectors' type.
    """
    images, boost = targets.shape[1], HALF_BOOST if vectors.dtype == torch.float16 else 1.0
    mean, to_prototypes = _compare(vectors, prototypes, targets, boost, chunks.prototypes)
    total, to_vectors = -(vectors.float() * mean).sum() / STUDENT_TEMPERATURE, []
    masses = keep_constant(_make_masses, vectors.device, (images, len(vectors)))
    for chunk, mass in split(chunks.rows, vectors, masses):
        log_sums, softmax = _normalize(F.linear(chunk, prototypes), mass * boost)
        total = total + (mass * log_sums).sum()
        to_vectors.append(softmax @ prototypes)
        add_product(to_prototypes, softmax.t(), chunk, chunks.prototypes)
    pairs = _count_pairs(len(vectors), targets)
    factor = 1 / (pairs * STUDENT_TEMPERATURE * boost)
    return (
        total / pairs,
        torch.cat(to_vectors).float().sub_(mean, alpha=boost).mul_(factor),
        to_prototypes.mul_(factor),
    )


def _make_masses(counts: tuple[int, int]) -> Tensor:
    """(V B, 1) float32: a global view is compared with one target, a local view with two."""
    images, rows = counts
    return torch.tensor([[1.0]] * 2 * images + [[2.0]] * (rows - 2 * images), device="cpu")


def _compare(
    vectors: Tensor, prototypes: Tensor, targets: Tensor, boost: float, rows: int
) -> tuple[Tensor, Tensor]:
    """Return the terms that depend on the targets.

    These are the mean prototype of each vector's targets (V B, D), and `boost` times their part of
    the prototypes' gradient (K, D).
    """
    images, flat = targets.shape[1], targets.flatten(0, 1).mul(boost).to(vectors.dtype)
    # The mean prototype of each target.
    first, second = torch.split((flat @ prototypes).float().div(boost), images)
    mean = torch.cat([second, first, *[first + second] * (len(vectors) // images - 2)])
    views = torch.unflatten(vectors.float(), 0, (-1, images))
    # The sum of the vectors that a target is compared with.
    compared = (views.sum(dim=0) - views[:2]).flatten(0, 1)
    # A mean over images, since a sum could overflow in float16.
    share = (compared / -images).to(vectors.dtype)
    return mean, multiply(flat.t(), share, rows).mul_(images)


def _normalize(logits: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    """Return log-sum-exp (n, 1) float32 and `factor` (n, 1) times the softmax at the temperature.

    The softmax has the logits' type.
    """
    dtype, logits = logits.dtype, logits.float().mul_(1 / STUDENT_TEMPERATURE)
    top = logits.amax(dim=-1, keepdim=True)
    sums = logits.sub_(top).exp_().sum(dim=-1, keepdim=True)
    return top + sums.log(), logits.mul_(factor / sums).to(dtype)


def _pass_scaling(gradient: Tensor, weight: Tensor, scale: Tensor, length: Tensor) -> Tensor:
    """Turn the gradient of weight times scale into that of the weight, in place.

    Returns:
        The gradient (n, 1) of the scale; it is the row's new length over the old one, `length`.
    """
    to_scale = (gradient * weight).sum(dim=1, keepdim=True)
    gradient.mul_(scale).addcmul_(weight, to_scale * scale / length.square(), value=-1)
    return to_scale


def _count_pairs(rows: int, targets: Tensor) -> int:
    """Return the number of pairs of different views over all images."""
    return 2 * rows - 2 * targets.shape[1]


def update_center(
    center: Tensor, batch_center: Tensor, momentum: Tensor | float = CENTER_MOMENTUM
) -> Tensor:
    """Return the next center (paper, equation 4): (1, K), (1, K) -> (1, K)."""
    return center * momentum + batch_center * (1 - momentum)


def compute_feature_spread(features: Tensor) -> Tensor:
    """Standard deviation of L2-normalized features, averaged over dimensions, times sqrt(D).

    Args:
        features: (B, D).

    Returns:
        () float32: 0 if all features are equal, near 1 if they point in all directions.
    """
    unit = F.normalize(features.detach().float(), dim=-1)
    return unit.std(dim=0, correction=0).mean() * math.sqrt(features.shape[-1])
