"""From one image to its uint8 crops and the parameters of their photometric augmentation.

All randomness for image i in epoch e is drawn here, from a generator seeded by (seed, e, i) alone.
Crops therefore do not depend on workers, processes, batches or interruptions. The distributions are
those of the original's DataAugmentationDINO. Shapes: V views, C channels, S side.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
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
RANDOM_SCALE = (0.08, 1.0)  # area fraction of a random crop (torchvision's RandomResizedCrop)
RESIZE_RATIO = 256 / 224  # evaluation: shorter side after resizing / side of the center crop
# Pillow's thumbnail: sizes beyond twice the target are first averaged down by integer factors.
REDUCING_GAP = 2.0

Box = tuple[int, int, int, int]  # top, left, height, width in pixels
# (C, H, W) uint8 image, the box and the side of each crop -> the crops, flat, each (S, S, C).
CutViews = Callable[[Tensor, Sequence[tuple[Box, int]]], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """How one group of views is cropped and augmented.

    Attributes:
        size: Side in pixels.
        scale: Smallest and largest fraction of the image's area.
        blur: Probability of blur.
        blur_scale: Factor on the blur radius. Crops smaller than the original's are blurred in
            proportion; a radius meant for 224 pixels would wipe out a crop of 32.
        solarize: Probability of solarization.
    """

    size: int
    scale: tuple[float, float]
    blur: float
    blur_scale: float = 1.0
    solarize: float = 0.0

    @property
    def chances(self) -> tuple[float, ...]:
        """Probabilities of flip, jitter, gray, blur and solarization (DataAugmentationDINO)."""
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
        """The first view is always blurred; the second is blurred rarely and may be solarized."""
        blur_scale = min(1.0, self.global_size / ORIGINAL_SIZES[0])
        first = ViewRecipe(
            size=self.global_size, scale=self.global_scale, blur=1.0, blur_scale=blur_scale
        )
        return first, replace(first, blur=0.1, solarize=0.2)

    def local_recipes(self) -> tuple[ViewRecipe, ...]:
        """Every local view is blurred with probability 0.5."""
        blur_scale = min(1.0, self.local_size / ORIGINAL_SIZES[1])
        view = ViewRecipe(
            size=self.local_size, scale=self.local_scale, blur=0.5, blur_scale=blur_scale
        )
        return (view,) * self.local_views


class Crops(NamedTuple):
    """The views of one image, or of a batch with a leading B.

    Attributes:
        global_pixels: (2, S, S, C) uint8, as decoded; (2, C, S, S) float32 once augmented.
        global_parameters: (2, PARAMETERS) float32.
        local_pixels: (V - 2, s, s, C), like the global ones.
        local_parameters: (V - 2, PARAMETERS) float32.
        replaced: () int64, how many unreadable images were skipped to find this one.
    """

    global_pixels: Tensor
    global_parameters: Tensor
    local_pixels: Tensor
    local_parameters: Tensor
    replaced: Tensor


def cut_views(image: Tensor, crops: Sequence[tuple[Box, int]]) -> np.ndarray:
    """Crop and resize view by view with torch; `data/native` does the same in one call."""
    views = [resize_crop(image, box, (side, side)).permute(1, 2, 0).numpy() for box, side in crops]
    return np.concatenate([view.reshape(-1) for view in views])


def cut_crops(
    image: Tensor,
    recipe: CropRecipe,
    rng: np.random.Generator,
    replaced: int = 0,
    cut: CutViews = cut_views,
) -> Crops:
    """Crop all views of an image and draw their photometric parameters.

    Args:
        image: (C, H, W) uint8.
        recipe: Which views to crop.
        rng: The image's own generator.
        replaced: Stored in the result.
        cut: How the views are cropped; all ways return the same levels.
    """
    channels, height, width = image.shape
    groups, rows, boxes = plan_views(recipe), [], []
    for views in groups:  # in this order: resumed runs draw the same numbers
        boxes += [draw_box(height, width, view.scale, rng) for view in views]
        rows.append(rng.random((len(views), photometric.PARAMETERS)))
    views = sum(groups, ())
    pixels = cut(image, [(box, view.size) for box, view in zip(boxes, views, strict=True)])
    parameters = torch.from_numpy(scale_parameters(views, np.concatenate(rows)))
    shapes = [(-1, size, size, channels) for size in (recipe.global_size, recipe.local_size)]
    end = GLOBAL_VIEWS * recipe.global_size**2 * channels
    return Crops(
        torch.from_numpy(pixels[:end].reshape(shapes[0])),
        parameters[:GLOBAL_VIEWS],
        torch.from_numpy(pixels[end:].reshape(shapes[1])),
        parameters[GLOBAL_VIEWS:],
        torch.from_numpy(np.array(replaced)),  # a third of torch.tensor's time
    )


@functools.cache
def plan_views(recipe: CropRecipe) -> tuple[tuple[ViewRecipe, ...], tuple[ViewRecipe, ...]]:
    """The global and the local views, made once per process."""
    return recipe.global_recipes(), recipe.local_recipes()


def build_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of image `index` in `epoch`."""
    return np.random.default_rng((seed, epoch, index))


def draw_box(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """Draw a box of random area and aspect ratio (torchvision's RandomResizedCrop.get_params).

    Args:
        height: H of the image in pixels.
        width: W of the image in pixels.
        scale: Smallest and largest fraction of the image's area.
        rng: The image's generator.

    Returns:
        Top, left, height, width in pixels; the image's center if ten random boxes do not fit.
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
    """Draw (V, PARAMETERS) float32 parameters of V views; `data/photometric` names the columns."""
    return scale_parameters(views, rng.random((len(views), photometric.PARAMETERS)))


def scale_parameters(views: Sequence[ViewRecipe], drawn: np.ndarray) -> np.ndarray:
    """(V, PARAMETERS) numbers drawn from [0, 1) as the parameters of V views, float32."""
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


def resize_crop(image: Tensor, box: Box, size: tuple[int, int], *, mode: str = "bicubic") -> Tensor:
    """Crop a box (top, left, height, width), resize it antialiased to (C, *size); uint8."""
    top, left, height, width = box
    part = np.ascontiguousarray(
        image.permute(1, 2, 0).numpy()[top : top + height, left : left + width]
    )
    # Laid out as channels last, for which torch's resize is fastest.
    views = torch.from_numpy(part)[None].permute(0, 3, 1, 2)
    return (
        views[0]
        if (height, width) == size
        else F.interpolate(views, size=size, mode=mode, antialias=True)[0]
    )


def random_resized_crop(image: Tensor, rng: np.random.Generator, size: int) -> Tensor:
    """A training view for classifiers: a random bilinear crop, flipped with probability 0.5.

    Args:
        image: (C, H, W) uint8.
        rng: The image's own generator.
        size: Side in pixels.

    Returns:
        (C, size, size) uint8, as from torchvision's RandomResizedCrop and RandomHorizontalFlip.
    """
    box = draw_box(image.shape[1], image.shape[2], RANDOM_SCALE, rng)
    view = resize_crop(image, box, (size, size), mode="bilinear")
    return view.flip(-1) if rng.random() < 0.5 else view


def resize_square(image: Tensor, size: int) -> Tensor:
    """Stretch the whole image to a square: (C, H, W) -> (C, size, size) uint8."""
    return resize_crop(image, (0, 0, *image.shape[1:]), (size, size))


def scale_shorter(height: int, width: int, shorter: int) -> tuple[int, int]:
    """Height and width in pixels with the shorter side scaled to `shorter`; rounds down."""
    return (
        (shorter, shorter * width // height)
        if height <= width
        else (shorter * height // width, shorter)
    )


def center_crop(image: Tensor, size: int) -> Tensor:
    """The evaluation view: resize the shorter side to `size` * 256 / 224, then crop the center.

    (C, H, W) -> (C, size, size) uint8.
    """
    height, width = image.shape[1:]
    scaled = scale_shorter(height, width, round(size * RESIZE_RATIO))
    resized = resize_crop(image, (0, 0, height, width), scaled)
    top, left = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
    return resized[:, top : top + size, left : left + size]


def resize_bilinear(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize by OpenCV without antialiasing: (C, H, W) uint8 -> (C, *size) uint8."""
    # Loaders already share the cores, and OpenMP or TBB threads of OpenCV do not survive a fork.
    cv2.setNumThreads(1)
    scaled = cv2.resize(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), size[::-1])
    return torch.from_numpy(scaled.reshape(*size, len(image))).permute(2, 0, 1)


def resize_lanczos(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize as Pillow's thumbnails: (C, H, W) uint8, C 1 or 3, channels last -> (C, *size)."""
    picture = Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())
    resized = picture.resize(size[::-1], Image.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    return torch.from_numpy(np.array(resized)).reshape(*size, -1).permute(2, 0, 1)
