"""The teacher follows the student (paper, section 3.1, momentum encoder)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from dino.models.registry import keeps_statistics

Network = TypeVar("Network", bound=nn.Module)


def build_teacher(teacher: Network, student: nn.Module) -> Network:
    """Copy the student's weights into the teacher, turn its gradients off and return it."""
    teacher.load_state_dict(student.state_dict())
    set_modes(teacher)
    return teacher.requires_grad_(False)


def set_modes(teacher: nn.Module) -> None:
    """Turn off all that is random in the teacher; batch norm uses its batch, as the original's."""
    for part in teacher.modules():
        part.training = keeps_statistics(part)


def update_teacher(teacher: nn.Module, student: nn.Module, momentum: Tensor) -> None:
    """Teacher <- m teacher + (1 - m) student, in place; buffers are not averaged.

    Args:
        teacher: Has the same parameters as the student, in the same order.
        student: Stays unchanged.
        momentum: () float32; 1 changes nothing, to the bit.
    """
    update_average(list(teacher.parameters()), list(student.parameters()), momentum)


def update_average(
    targets: Sequence[Tensor],
    sources: Sequence[Tensor],
    momentum: Tensor,
    *,
    fused: bool = False,
) -> None:
    """Average tensor by tensor, as `update_teacher`.

    Args:
        targets: Become the averages.
        sources: Stay unchanged.
        momentum: () float32; 1 changes nothing, to the bit.
        fused: Whether products of a list of tensors and a () tensor are one kernel here. They need
            memory for the products, and a lerp does not, but no device has a kernel for the lerp of
            a list by a () tensor.
    """
    with torch.no_grad():
        if fused:
            torch._foreach_mul_(list(targets), momentum)
            torch._foreach_add_(list(targets), torch._foreach_mul(list(sources), 1 - momentum))
        else:
            torch._foreach_lerp_(list(targets), list(sources), [1 - momentum] * len(targets))
