"""The projection head: perceptron, L2 normalization, weight-normed prototypes (paper, section 3.1; DINOHead there).

Shapes: B vectors, D backbone width, K prototypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.models.vit import init_linear


class PrototypeLayer(nn.Module):
    """Linear layer without bias whose rows are `weight_g * weight_v / |weight_v|`.

    The two parameters bear the names that torch's first weight norm gave them, which checkpoints hold; as plain
    parameters they can be deep-copied at any time.
    """

    def __init__(self, dim: int, prototypes: int, *, trainable_norm: bool) -> None:
        """Make K = `prototypes` rows of `dim` numbers and length 1; `trainable_norm` lets the lengths learn."""
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(prototypes, 1), requires_grad=trainable_norm)
        self.weight_v = nn.Parameter(nn.Linear(dim, prototypes, bias=False).weight.detach())

    def forward(self, vectors: Tensor) -> Tensor:
        """(B, dim) -> (B, K)."""
        length = torch.linalg.vector_norm(self.weight_v, dim=1, keepdim=True)
        return F.linear(vectors, self.weight_v * (self.weight_g / length))


class DINOHead(nn.Module):
    """Features to prototype logits.

    Args:
        in_dim: Backbone width D.
        out_dim: Prototypes K.
        use_bn: Batch norm after each hidden layer.
        norm_last_layer: Keep the prototypes at length 1.
        layers: Linear layers before the prototypes.
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
        """Make and initialize the head."""
        super().__init__()
        widths = [in_dim] + [hidden_dim] * (layers - 1)
        hidden = [
            part
            for pair in zip(widths, widths[1:], strict=False)
            for part in _hidden(*pair, use_bn=use_bn)
        ]
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
        """(B, D) -> (B, bottleneck_dim), rows of length 1: what the last layer takes."""
        return F.normalize(self.mlp(features), dim=-1)


def _hidden(inputs: int, outputs: int, *, use_bn: bool) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), *([nn.BatchNorm1d(outputs)] if use_bn else []), nn.GELU()]
