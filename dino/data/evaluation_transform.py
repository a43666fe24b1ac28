"""The evaluation view as torchvision's transforms, for programs that embed a backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dino.data.crops import RESIZE_RATIO
from dino.data.levels import PixelRange
from dino.data.photometric import Normalization
from dino.data.user_images import to_pixels


@dataclass(frozen=True, kw_only=True)
class ToPixels:
    """Converts any image that `dino.embed` takes to (C, H, W) uint8.

    Attributes:
        channels: C.
        pixel_range: Levels that become black and white where they have more than 8 bits, or None.
    """

    channels: int = 3
    pixel_range: PixelRange | None = None

    def __call__(self, image: Any) -> Tensor:
        """Return the pixels of an image.

        Raises:
            DataError: It is not an image, or has other channels.
        """
        return to_pixels(image, self.channels, "the image", self.pixel_range)


def build_transform(
    to_uint8: ToPixels, size: int, normalization: Normalization
) -> Callable[[Any], Tensor]:
    """Build what `data/crops.center_crop` and `normalization` do to an image, step by step.

    Args:
        to_uint8: The first step.
        size: S, side of the view in pixels.
        normalization: The last step.

    Returns:
        torchvision's `Compose`: an image of any size -> (C, S, S) float32.
    """
    from torchvision.transforms import InterpolationMode, v2

    steps = [
        to_uint8,
        v2.Resize(round(size * RESIZE_RATIO), InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(size),
        normalization,
    ]
    transform: Callable[[Any], Tensor] = v2.Compose(steps)
    return transform
