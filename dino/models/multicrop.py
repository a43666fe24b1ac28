"""A backbone and a head that see several resolutions in one call (MultiCropWrapper in the original)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dino.models.head import DINOHead


class MultiCrop(nn.Module):
    """Run the backbone once a resolution, and the head once over everything but for its last layer.

    The prototypes' product is left to the caller, since the logits of all views together are large.
    """

    def __init__(self, backbone: nn.Module, head: DINOHead) -> None:
        """Join the two; their parameters are named `backbone.*` and `head.*`."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, *views: Tensor, depth: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Each view group (n_i, C, S_i, S_i) -> features (sum n_i, D) and projected vectors, in the given order.

        Args:
            views: The groups.
            depth: (2 L, sum n_i) float32, what the L blocks of a vision transformer multiply their branches with.
        """
        if depth is None:
            features = torch.cat([self.backbone(view) for view in views])
        else:
            parts = torch.split(depth, [len(view) for view in views], dim=1)
            features = torch.cat(
                [self.backbone(view, part) for view, part in zip(views, parts, strict=True)]
            )
        return features, self.head.project(features)
