"""A backbone and a head for several resolutions in one call (the original's MultiCropWrapper)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino.models.head import DINOHead
from dino.models.vit import VisionTransformer


class MultiCrop(nn.Module):
    """Runs the backbone, and the head over all views except for its last layer.

    Our vision transformer takes all resolutions at once, other networks one after the other.
    The caller computes the product with the prototypes, because the logits of all views are large.
    """

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        """Join the two; their parameters are named `backbone.*` and `head.*`."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def stages(self) -> list[nn.Module]:
        """Parts with most of the weights, which run one after the other and once in a pass."""
        blocks = self.backbone.blocks if isinstance(self.backbone, VisionTransformer) else ()
        return [*blocks, self.head.mlp]

    def forward(self, *views: Tensor, depth: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """View groups (n_i, C, S_i, S_i) -> features (sum n_i, D) and projected vectors, in order.

        Args:
            views: The groups.
            depth: (2 L, sum n_i) float32, branch factors of the L blocks of a vision transformer.
        """
        if isinstance(self.backbone, VisionTransformer):
            features = self.backbone(views, depth)
        else:
            features = torch.cat([self.backbone(view) for view in views])
        return features, self.head.project(features)
