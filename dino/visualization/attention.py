"""Where the CLS token of the last block looks: one map a head, drawn over the image.

Shapes: B images, S side in pixels, G side of the patch grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dino.data.crops import cut_centre
from dino.data.decode import read_image
from dino.data.photometric import Normalisation
from dino.errors import OptionError
from dino.models.vit import VisionTransformer

TILE = 192  # pixels, side of one picture of a sheet


def compute_maps(backbone: VisionTransformer, images: Tensor) -> Tensor:
    """Attention of the CLS token to every patch: (B, C, S, S) -> (B, heads, G, G), without an N x N tensor."""
    with torch.inference_mode():
        row = backbone.get_last_selfattention(images, queries=slice(0, 1))[:, :, 0, 1:]
    side = images.shape[-1] // backbone.patch_size
    return row.unflatten(-1, (side, side))


def draw_sheet(
    backbone: VisionTransformer, paths: Sequence[Path], *, size: int, normalisation: Normalisation, target: Path
) -> Path:
    """Write one picture: a row an image, first the image, then every head's map, brightest where it attends most.

    Args:
        backbone: In eval mode, on the host.
        paths: Image files.
        size: S, side of the centre crop that the backbone sees.
        normalisation: That the backbone was trained with.
        target: PNG to write.

    Raises:
        DataError: An image cannot be decoded.
        OptionError: The target cannot be written.
    """
    channels = len(normalisation.mean)
    pixels = torch.stack([cut_centre(read_image(path, channels), size) for path in paths])
    maps = compute_maps(backbone, normalisation(pixels))
    rows = [_draw_row(image, heads) for image, heads in zip(pixels, maps, strict=True)]
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(target)
    except OSError as error:
        raise OptionError(f"{target} cannot be written: {error}") from error
    return target


def _draw_row(image: Tensor, heads: Tensor) -> np.ndarray:
    """(C, S, S) uint8 (the first three channels, or gray) and (heads, G, G) -> (TILE, (1 + heads) TILE, 3) uint8."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    picture = F.interpolate(shown[None].float(), size=TILE, mode="nearest")[0]
    maps = F.interpolate(heads[:, None], size=TILE, mode="nearest")  # nearest: a patch stays visible as a patch
    bright = maps / maps.amax(dim=(2, 3), keepdim=True).clamp(min=1e-12)
    tiles = torch.cat([picture[None], picture * bright])
    return tiles.permute(2, 0, 3, 1).flatten(1, 2).byte().numpy()
