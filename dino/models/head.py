"""The projection head: perceptron, L2 normalization, weight-normed prototypes.

See section 3.1 of the paper and the original's DINOHead. Shapes: B vectors, D backbone width,
K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.models.vit import init_linear


class PrototypeLayer(nn.Module):
    """Linear layer without bias whose rows are `weight_g * weight_v / |weight_v|`.

    The two parameters keep the names of torch's first weight norm, as found in checkpoints. Being
    plain parameters, they can be deep-copied at any time.
    """

    def __init__(self, dim: int, prototypes: int, *, trainable_norm: bool) -> None:
        """Create K = `prototypes` unit-length rows; `trainable_norm` makes lengths trainable."""
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=trainable_norm)
        self.weight_v = nn.Parameter(nn.Linear(dim, prototypes, bias=False).weight.detach())

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, dim) -> (B, K)."""
        length = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        return F.linear(vectors, self.weight_v * (self.weight_g / length))


class DINOHead(nn.Module):
    """Maps features to prototype logits.

    Args:
        in_dim: Backbone width D.
        out_dim: Prototypes K.
        use_bn: Use batch norm after each hidden layer.
        norm_last_layer: Keep the prototypes at length 1.
        layers: Number of linear layers before the prototypes.
        hidden_dim: Width of the hidden layers.
        bottleneck_dim: Width of the normalized vector.
    """

    def __init__(
        self,
        *,
        in_dim: int,
        out_dim: int,
        use_bn: bool = False,
        norm_last_layer: bool = True,
        layers: int = 3,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
    ) -> None:
        """Create and initialize the head."""
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (layers - 1)
        hidden: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            hidden += _hidden(inputs, outputs, use_bn=use_bn)
        last = nn.Linear(widths[-1], bottleneck_dim)
        self.mlp = nn.Sequential(*hidden, last) if hidden else last
        self.apply(init_linear)
        self.last_layer = PrototypeLayer(
            bottleneck_dim, out_dim, trainable_norm=not norm_last_layer
        )

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) -> logits (B, K)."""
        logits: Tensor = self.last_layer(self.project(features))
        return logits

    def project(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, bottleneck_dim), rows of length 1: the input of the last layer."""
        return F.normalize(self.mlp(features), dim=-1)


def _hidden(inputs: int, outputs: int, *, use_bn: bool) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if use_bn else []), nn.GELU()]
