"""Batch norm over all processes with plain collectives, for devices without SyncBatchNorm."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino.devices.untyped import all_reduce


def synchronize(module: nn.Module) -> nn.Module:
    """Replace every batch norm inside `module`, and `module` itself if it is one."""
    for name, child in module.named_children():
        module.set_submodule(name, synchronize(child))
    return (
        AllReduceBatchNorm.adopt(module)
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        else module
    )


class AllReduceBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batches of all processes, using an all-reduce with gradients."""

    # Statistics are always tracked here, so they are never None as torch allows.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    @classmethod
    def adopt(cls, norm: nn.modules.batchnorm._BatchNorm) -> AllReduceBatchNorm:
        """Build one that shares the parameters and buffers of an ordinary batch norm."""
        adopted = cls(
            norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
        )
        adopted._parameters, adopted._buffers = norm._parameters, norm._buffers
        return adopted.train(norm.training)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...), computed in fp32.

        In training, statistics are over all dimensions except C, and over all processes.
        """
        if not self.training:
            return super().forward(inputs)
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
        return normalized.to(inputs.dtype)

    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)

    def _check_input_dim(self, inputs: Tensor) -> None:
        """Accept any number of dimensions from 2 up."""
