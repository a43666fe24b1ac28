"""One image to its uint8 crops, and the numbers that say what the device shall do with each.

Everything that is random about image i in epoch e is drawn here, from a generator seeded by (seed, e, i) alone, so
that crops do not depend on workers, processes, batches or interruptions. The distributions are those of the
original's DataAugmentationDINO. Shapes: V views, C channels, S side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dino.data import photometric

GLOBAL_VIEWS = 2
JITTER_LOW = -np.array((0.4, 0.4, 0.2, 0.1))  # brightness, contrast, saturation, hue
JITTER_RANGE = -2.0 * JITTER_LOW
ASPECT_RATIOS = (3 / 4, 4 / 3)
BLUR_RADIUS = (0.1, 2.0)  # pixels, on crops of the original's sizes
BLUR_RANGE = BLUR_RADIUS[1] - BLUR_RADIUS[0]
ORIGINAL_SIZES = (224, 96)  # global, local
CROP_TRIES = 10
RANDOM_SCALE = (0.08, 1.0)  # share of the area of a random crop (torchvision's RandomResizedCrop)
RESIZE_RATIO = (
    256 / 224
)  # evaluation: shorter side of the resized image over the center crop's side
REDUCING_GAP = 2.0  # Pillow's thumbnail: sizes beyond twice the wanted one are first averaged down by whole factors


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """How views of one kind are cut and changed.

    Attributes:
        size: Side in pixels.
        scale: Smallest and largest share of the image's area.
        blur: Chance of blur.
        blur_scale: Factor on the blur's radius; smaller crops than the original's are blurred in proportion, or a
            radius meant for 224 pixels would wipe a crop of 32 out.
        solarize: Chance of solarization.
    """

    size: int
    scale: tuple[float, float]
    blur: float
    blur_scale: float = 1.0
    solarize: float = 0.0

    @property
    def chances(self) -> tuple[float, ...]:
        """Of flip, jitter, gray, blur and solarization (the original's DataAugmentationDINO)."""
        return 0.5, 0.8, 0.2, self.blur, self.solarize


@dataclass(frozen=True, kw_only=True)
class CropRecipe:
    """The views of one image: two global ones, then the local ones."""

    global_size: int = 224
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.4)
    local_views: int = 8
    channels: int = 3

    def global_recipes(self) -> tuple[ViewRecipe, ViewRecipe]:
        """The first global view is always blurred, the second rarely, and it alone is solarized."""
        blur_scale = min(1.0, self.global_size / ORIGINAL_SIZES[0])
        first = ViewRecipe(
            size=self.global_size, scale=self.global_scale, blur=1.0, blur_scale=blur_scale
        )
        return first, replace(first, blur=0.1, solarize=0.2)

    def local_recipes(self) -> tuple[ViewRecipe, ...]:
        """Every local view is blurred half of the time."""
        blur_scale = min(1.0, self.local_size / ORIGINAL_SIZES[1])
        view = ViewRecipe(
            size=self.local_size, scale=self.local_scale, blur=0.5, blur_scale=blur_scale
        )
        return (view,) * self.local_views


class Crops(NamedTuple):
    """The views of one image; of a batch, with B in front.

    Attributes:
        global_pixels: (2, S, S, C) uint8, as decoders lay them out; (2, C, S, S) float32 once they are augmented.
        global_parameters: (2, PARAMETERS) float32.
        local_pixels: (V - 2, s, s, C), as the global ones.
        local_parameters: (V - 2, PARAMETERS) float32.
        replaced: () int64, how many unreadable images were passed over to find this one.
    """

    global_pixels: Tensor
    global_parameters: Tensor
    local_pixels: Tensor
    local_parameters: Tensor
    replaced: Tensor


def cut_crops(
    image: Tensor, recipe: CropRecipe, rng: np.random.Generator, replaced: int = 0
) -> Crops:
    """Cut all views of an image and draw their photometric parameters.

    Args:
        image: (C, H, W) uint8.
        recipe: Which views.
        rng: The image's own generator.
        replaced: Passed on.
    """
    global_pixels, global_parameters = _cut_views(
        image, recipe.global_recipes(), recipe.global_size, rng
    )
    local_pixels, local_parameters = _cut_views(
        image, recipe.local_recipes(), recipe.local_size, rng
    )
    return Crops(
        global_pixels, global_parameters, local_pixels, local_parameters, torch.tensor(replaced)
    )


def build_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of image `index` in `epoch`."""
    return np.random.default_rng((seed, epoch, index))


def _cut_views(
    image: Tensor, views: tuple[ViewRecipe, ...], size: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    pixels = np.empty((len(views), size, size, image.shape[0]), dtype=np.uint8)
    for place, view in enumerate(views):
        box = draw_box(image.shape[1], image.shape[2], view.scale, rng)
        pixels[place] = resize_crop(image, box, (size, size)).permute(1, 2, 0).numpy()
    return torch.from_numpy(pixels), torch.from_numpy(draw_parameters(views, rng))


def draw_box(
    height: int, width: int, scale: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """Draw a box of random area and shape (torchvision's RandomResizedCrop.get_params).

    Args:
        height: H of the image in pixels.
        width: W of the image in pixels.
        scale: Smallest and largest share of the image's area.
        rng: The image's generator.

    Returns:
        Top, left, height, width in pixels; the middle of the image where ten tries do not fit into it.
    """
    low, high = math.log(ASPECT_RATIOS[0]), math.log(ASPECT_RATIOS[1])
    for _ in range(CROP_TRIES):
        share, shape, down, right = rng.random(4).tolist()
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = math.exp(low + (high - low) * shape)
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            return (
                int(down * (height - box_height + 1)),
                int(right * (width - box_width + 1)),
                box_height,
                box_width,
            )
    box_width = min(width, max(1, round(height * ASPECT_RATIOS[1])))
    box_height = min(height, max(1, round(width / ASPECT_RATIOS[0])))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def draw_parameters(views: Sequence[ViewRecipe], rng: np.random.Generator) -> np.ndarray:
    """Draw the (V, PARAMETERS) float32 numbers of V views; `data/photometric` names the columns."""
    drawn = rng.random((len(views), photometric.PARAMETERS))
    rows = drawn.astype(np.float32)
    rows[:, photometric.FLAGS] = drawn[:, photometric.FLAGS] < np.reshape(
        [view.chances for view in views], (-1, 5)
    )
    rows[:, photometric.FACTORS] = (
        JITTER_LOW + JITTER_RANGE * drawn[:, photometric.FACTORS] + photometric.NEUTRAL
    )
    rows[:, photometric.ORDER] = drawn[:, photometric.ORDER].argsort(axis=1)
    rows[:, photometric.RADIUS] = BLUR_RADIUS[0] + BLUR_RANGE * drawn[:, photometric.RADIUS]
    rows[:, photometric.RADIUS] *= [view.blur_scale for view in views]
    return rows


def resize_crop(
    image: Tensor, box: tuple[int, int, int, int], size: tuple[int, int], *, mode: str = "bicubic"
) -> Tensor:
    """Cut a box (top, left, height, width) and resize it, antialiased: (C, H, W) -> (C, *size), uint8."""
    top, left, height, width = box
    part = np.ascontiguousarray(
        image.permute(1, 2, 0).numpy()[top : top + height, left : left + width]
    )
    views = torch.from_numpy(part)[None].permute(
        0, 3, 1, 2
    )  # known as channels last, torch's fast way through it
    return (
        views[0]
        if (height, width) == size
        else F.interpolate(views, size=size, mode=mode, antialias=True)[0]
    )


def random_resized_crop(image: Tensor, rng: np.random.Generator, size: int) -> Tensor:
    """The view that classifiers are trained on: a random bilinear crop, flipped half of the time.

    Args:
        image: (C, H, W) uint8.
        rng: The image's own generator.
        size: Side in pixels.

    Returns:
        (C, size, size) uint8, as torchvision's RandomResizedCrop and RandomHorizontalFlip draw it.
    """
    box = draw_box(image.shape[1], image.shape[2], RANDOM_SCALE, rng)
    view = resize_crop(image, box, (size, size), mode="bilinear")
    return view.flip(-1) if rng.random() < 0.5 else view


def resize_square(image: Tensor, size: int) -> Tensor:
    """The whole image as a square, its shape not kept: (C, H, W) -> (C, size, size) uint8."""
    return resize_crop(image, (0, 0, *image.shape[1:]), (size, size))


def scale_shorter(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width in pixels once the shorter of them is `shorter`; the longer one is rounded down."""
    return (
        (shorter, shorter * width // height)
        if height <= width
        else (shorter * height // width, shorter)
    )


def resize_whole(image: Tensor, size: tuple[int, ...] | None) -> Tensor:
    """Resize an image as torchvision's `Resize` does by default (bilinear, antialiased): (C, H, W) uint8 -> the same.

    Args:
        image: (C, H, W) uint8.
        size: Height and width, to which the image is stretched; or one number, its shorter side, which keeps the
            aspect; or None, which leaves it as it is.
    """
    if size is None:
        return image
    height, width = image.shape[1:]
    scaled = (size[0], size[1]) if len(size) > 1 else scale_shorter(height, width, size[0])
    return resize_crop(image, (0, 0, height, width), scaled, mode="bilinear")


def center_crop(image: Tensor, size: int) -> Tensor:
    """The evaluation view: shorter side to `size` * 256 / 224, then the middle; (C, H, W) -> (C, size, size) uint8."""
    height, width = image.shape[1:]
    scaled = scale_shorter(height, width, round(size * RESIZE_RATIO))
    resized = resize_crop(image, (0, 0, height, width), scaled)
    top, left = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return resized[:, top : top + size, left : left + size]


def resize_bilinear(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) uint8 -> (C, *size) uint8, bilinear without smoothing and rounded, by OpenCV."""
    # Loaders share the cores already; and where OpenCV's threads are OpenMP's or TBB's, they do not outlive a fork.
    cv2.setNumThreads(1)
    scaled = cv2.resize(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), size[::-1])
    return torch.from_numpy(scaled.reshape(*size, len(image))).permute(2, 0, 1)


def resize_lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, H, W) uint8, C 1 or 3, channels last in memory -> (C, *size) uint8, as Pillow's thumbnails are scaled."""
    picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
    resized = picture.resize(size[::-1], Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    return torch.from_numpy(np.array(resized)).reshape(*size, -1).permute(2, 0, 1)
