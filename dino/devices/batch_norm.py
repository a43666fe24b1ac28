"""Batch norm over all processes with plain collectives, for devices without SyncBatchNorm."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from dino.devices.untyped import all_reduce

Norm = TypeVar("Norm", bound=nn.modules.batchnorm._BatchNorm)


def synchronize(module: nn.Module, kind: type[nn.modules.batchnorm._BatchNorm]) -> nn.Module:
    """Replace every batch norm inside `module`, and `module` itself if it is one, by a `kind`."""
    for name, child in module.named_children():
        module.set_submodule(name, synchronize(child, kind))
    return adopt(module, kind) if isinstance(module, nn.modules.batchnorm._BatchNorm) else module


def adopt(norm: nn.modules.batchnorm._BatchNorm, kind: type[Norm]) -> Norm:
    """Build a `kind` that shares the parameters, buffers and parts of another batch norm."""
    adopted = kind(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    )
    adopted._parameters, adopted._buffers = norm._parameters, norm._buffers
    adopted._modules, adopted.training = norm._modules, norm.training
    return adopted


def run_parts(norm: nn.Module, normalized: Tensor) -> Tensor:
    """Apply what a batch norm of timm holds in addition: its dropout and its activation."""
    for part in norm.children():
        normalized = part(normalized)
    return normalized


class AllReduceBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, using an all-reduce with gradients."""

    # Statistics are always tracked here, so they are never None as torch allows.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), computed in fp32.

        In training, statistics are over all dimensions except C, and over all processes.
        """
        if not self.training:
            return run_parts(self, super().forward(inputs))
        values = inputs.float()
        dims, shape = [0, *range(2, inputs.ndim)], (1, -1, *(1,) * (inputs.ndim - 2))
        count = values.new_full((1,), inputs.numel() / inputs.shape[1])
        summed = all_reduce(torch.cat([values.sum(dims), count]))
        total, counts = torch.split(summed, [self.num_features, 1])
        centered = values - (total / counts).reshape(shape)
        variance = all_reduce(centered.square().sum(dims)) / counts
        self._update_running((total / counts).detach(), (variance * counts / (counts - 1)).detach())
        scale = (variance + self.eps).rsqrt() * self.weight
        normalized: Tensor = centered * scale.reshape(shape) + self.bias.reshape(shape)
        return run_parts(self, normalized.to(inputs.dtype))

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Accept any number of dimensions from 2 up."""
