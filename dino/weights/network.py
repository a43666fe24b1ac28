"""A backbone's tensors under our names, which are the original's: what their shapes tell, and how formats pass it on.

Letters: C classes, D width, N tokens, P side of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dino.models.registry import VITS


def is_vision_transformer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of our vision transformers, and the shapes tell its sizes."""
    sizes = {"pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
    if not {"pos_embed", "patch_embed.proj.weight"} <= tensors.keys():
        return False
    shaped = all(
        tensors[n].ndim == count and tensors[n].numel()
        for n, count in sizes.items()
        if n in tensors
    )
    return shaped and tensors["pos_embed"].shape[1] > 1


def count_blocks(tensors: Mapping[str, Tensor]) -> int:
    """How many blocks a vision transformer under our names has."""
    return len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})


def guess_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of one of our vision transformers tell about it; nothing for other networks."""
    if not is_vision_transformer(tensors):
        return {}
    convs = [
        tensor
        for name, tensor in tensors.items()
        if name.startswith("patch_embed.") and tensor.ndim == 4
    ]
    dim, in_chans = convs[-1].shape[0], convs[0].shape[1]
    patch_size = convs[-1].shape[-1] << (
        len(convs) - 1
    )  # each convolution of a stem halves the side
    depth = count_blocks(tensors)
    arch = next(
        (name for name, shape in VITS.items() if (shape.embed_dim, shape.depth) == (dim, depth)),
        None,
    )
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    found = {"patch_size": patch_size, "in_chans": in_chans}
    if side * side == tensors["pos_embed"].shape[1] - 1:
        found["image_size"] = side * patch_size
    return found | ({"arch": arch} if arch else {})


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone on its way from one format to another.

    Attributes:
        origin: What it was read from.
        tensors: The backbone's, under our names, in the file's number formats.
        linear: A linear classifier's `weight` (C, D) and `bias` (C,), or nothing.
        arch: Architecture; empty for a vision transformer that is none of ours by its width and depth.
        patch_size: In pixels; of no meaning but for a ViT.
        in_chans: Channels of an image.
        image_size: Height and width in pixels of the images that it is for.
        normalization: {"mean": ..., "std": ...}, a number a channel each, or None where the file does not say.
        left: Words about what of the file is not converted, the end of a line.
    """

    origin: str
    tensors: Mapping[str, Tensor]
    linear: Mapping[str, Tensor]
    arch: str
    patch_size: int
    in_chans: int
    image_size: tuple[int, int]
    normalization: Mapping[str, list[float]] | None
    left: str

    @property
    def is_plain_vit(self) -> bool:
        """Whether it is a vision transformer as other projects have it too, with one projection for patches."""
        return is_vision_transformer(self.tensors) and not any(
            "patch_embed.convs" in name for name in self.tensors
        )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width in pixels of the patches that the position embedding is stored for."""
        height, width = (side // self.patch_size * self.patch_size for side in self.image_size)
        return height, width
