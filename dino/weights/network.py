"""A backbone's tensors under our names, which are the original's: its sizes, and its description.

Letters: C classes, D width, N tokens, P side of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dino.data.levels import PixelRange
from dino.models.registry import VITS


def is_vision_transformer(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of our vision transformers, with shapes that reveal its sizes."""
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
    """Count the blocks of a vision transformer under our names."""
    return len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})


def guess_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the settings of one of our ViTs from its tensors; empty for other networks."""
    if not is_vision_transformer(tensors):
        return {}
    convs = [
        tensor
        for name, tensor in tensors.items()
        if name.startswith("patch_embed.") and tensor.ndim == 4
    ]
    dim, in_chans = convs[-1].shape[0], convs[0].shape[1]
    halvings = len(convs) - 1  # each further convolution of a stem halves the side
    patch_size = convs[-1].shape[-1] << halvings
    depth = count_blocks(tensors)
    arch = next(
        (name for name, shape in VITS.items() if (shape.embed_dim, shape.depth) == (dim, depth)),
        None,
    )
    side = math.isqrt(tensors["pos_embed"].shape[1] - 1)
    settings = {"patch_size": patch_size, "in_chans": in_chans}
    if side * side == tensors["pos_embed"].shape[1] - 1:
        settings["image_size"] = side * patch_size
    return settings | ({"arch": arch} if arch else {})


@dataclass(frozen=True, kw_only=True)
class Network:
    """A backbone that is converted from one format to another.

    Attributes:
        origin: The file or name that it was read from.
        tensors: The backbone's tensors, under our names, with the file's dtypes.
        linear: A linear classifier's `weight` (C, D) and `bias` (C,), or nothing.
        arch: Architecture. Empty for a vision transformer whose width and depth none of ours has.
        patch_size: Patch size in pixels; meaningful for a ViT only.
        in_chans: Channels of an image.
        image_size: Height and width of its images in pixels.
        normalization: {"mean": ..., "std": ...} with one number per channel, or None if unknown.
        pixel_range: Levels that become black and white where they have more than 8 bits, or None.
        left: End of a log line that lists what is not converted.
    """

    origin: str
    tensors: Mapping[str, Tensor]
    linear: Mapping[str, Tensor]
    arch: str
    patch_size: int
    in_chans: int
    image_size: tuple[int, int]
    normalization: Mapping[str, list[float]] | None
    pixel_range: PixelRange | None
    left: str

    @property
    def is_plain_vit(self) -> bool:
        """Whether it is a vision transformer with one patch projection, as in other projects."""
        return is_vision_transformer(self.tensors) and not any(
            "patch_embed.convs" in name for name in self.tensors
        )

    @property
    def grid_size(self) -> tuple[int, int]:
        """Height and width in pixels that the whole patches of the position embedding cover."""
        height, width = (side // self.patch_size * self.patch_size for side in self.image_size)
        return height, width
