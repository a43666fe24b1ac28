"""Pictures of a training run: the crops that the network gets, and what a backbone has learned.

Shapes: B images, V views, C channels, S side.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dino.data.crops import center_crop
from dino.data.image_source import ImageSource
from dino.data.photometric import Normalization
from dino.errors import DataError, OptionError
from dino.models.dense import build_dense
from dino.models.vit import VisionTransformer
from dino.runtime.context import Run
from dino.runtime.ownership import check_own
from dino.runtime.sinks.base import Jpeg
from dino.visualization.attention_maps import ClsAttention, add_mean
from dino.visualization.patch_colors import color_patches
from dino.visualization.pictures import (
    Pixels,
    encode_jpeg,
    enlarge,
    save_picture,
    to_picture,
)
from dino.visualization.sheets import draw_columns, draw_row, fit, name_maps

logger = logging.getLogger(__name__)

NAMES = CROPS, ATTENTION, PATCHES = "crops", "epoch_attention", "epoch_patches"
IMAGES = 4  # whose attention and patches are drawn
TRIES = 8  # images read in place of one that cannot be
VIEW_TILE = 160  # pixels, side of a global view
MAP_TILE = 176  # pixels, side of an attention map


class RunPictures:
    """Draws a run's pictures: files in its folder, each new one in place of the last.

    No random number is drawn, and no weight changes. Methods return JPEGs by the file's stem.
    """

    def __init__(
        self,
        folder: Path,
        source: ImageSource,
        run: Run,
        *,
        arch: str,
        image_size: int,
        in_chans: int,
        normalization: Normalization,
    ) -> None:
        """Check that the files are not the user's; read no image yet.

        Args:
            folder: The run's output folder.
            source: The training images; four of them, evenly spaced, are drawn every time.
            run: The run that provides the device.
            arch: The backbone's architecture.
            image_size: S, side in pixels of the global crops.
            in_chans: C.
            normalization: The run's mean and standard deviation.

        Raises:
            OptionError: A file that would be replaced is not of this package.
        """
        check_own(folder / f"{name}.png" for name in NAMES)
        self.folder, self.source, self.run, self.arch = folder, source, run, arch
        self.image_size, self.in_chans = image_size, in_chans
        self.normalization, self.told = normalization, False

    def draw_crops(self, views: Sequence[Tensor], images: int) -> Mapping[str, Jpeg]:
        """Draw a row for each of B images and a column for each view, at their relative sizes.

        Args:
            views: Per resolution (V B, C, S, S), augmented and normalized, ordered by view.
            images: B.

        Raises:
            OptionError: The file cannot be written.
        """
        columns: list[tuple[str, list[Pixels]]] = []
        for name, group in zip(("global", "local"), views, strict=False):
            side = round(VIEW_TILE * group.shape[-1] / views[0].shape[-1])
            levels = self.normalization.restore(group.cpu())
            pictures = [fit(to_picture(view), side) for view in levels]
            columns += [
                (f"{name} {first // images + 1}", pictures[first : first + images])
                for first in range(0, len(pictures), images)
            ]
        return self._save({CROPS: draw_columns(columns)})

    def draw_backbone(self, backbone: nn.Module) -> Mapping[str, Jpeg]:
        """Draw the attention of the CLS token and the patches as colors, if the network has them.

        Leaves the backbone in eval mode.

        Raises:
            OptionError: A file cannot be written.
        """
        if self._images is None:
            return {}
        names, pixels = self._images
        inputs = self.normalization(self.run.device.to_device(pixels))
        pictures, drawn = [to_picture(image) for image in pixels], {}
        if isinstance(backbone, VisionTransformer):
            maps = add_mean(self._infer(ClsAttention(backbone), inputs))
            drawn[ATTENTION] = draw_attention(names, pictures, maps)
        dense = self._build_dense(backbone)
        if dense is not None:
            drawn[PATCHES] = draw_patches(names, pictures, self._infer(dense, inputs))
        return self._save(drawn)

    def _infer(self, module: nn.Module, inputs: Tensor) -> Tensor:
        return self.run.device.compile_eval(module)(inputs).float().cpu()

    def _build_dense(self, backbone: nn.Module) -> nn.Module | None:
        try:
            return build_dense(backbone, self.arch)
        except OptionError as error:
            if not self.told:
                logger.info("no picture of patches: %s", error)
            self.told = True
            return None

    @functools.cached_property
    def _images(self) -> tuple[list[str], Tensor] | None:
        """Names and center crops (IMAGES, C, S, S) uint8 of the images drawn every time."""
        if not self.run.device.scores_in_training:
            logger.info("`device` %s draws crops, but no backbone", self.run.device.name)
            return None
        count = len(self.source)
        found = [self._read(number * count // IMAGES) for number in range(min(IMAGES, count))]
        read = [image for image in found if image is not None]
        return (
            ([name for name, _ in read], torch.stack([view for _, view in read])) if read else None
        )

    def _read(self, index: int) -> tuple[str, Tensor] | None:
        """The name and view of an image, or of the first one after it that can be read."""
        for place in range(index, min(index + TRIES, len(self.source))):
            try:
                image = self.source.read(place, self.in_chans)
            except DataError:
                continue  # the training loader says so
            return Path(self.source.names[place]).name, center_crop(image, self.image_size)
        return None

    def _save(self, drawn: Mapping[str, Pixels]) -> dict[str, Jpeg]:
        for stem, pixels in drawn.items():
            save_picture(self.folder / f"{stem}.png", pixels)
        return {stem: encode_jpeg(pixels) for stem, pixels in drawn.items()}


def draw_attention(names: Sequence[str], pictures: Sequence[Pixels], maps: Tensor) -> Pixels:
    """Draw a row an image, with its maps (B, heads + 1, h, w), the mean last."""
    titles = name_maps(maps.shape[1] - 1)
    rows = zip(names, pictures, maps.numpy(), strict=True)
    return np.concatenate(
        [draw_row(view, part, titles, name, MAP_TILE) for name, view, part in rows]
    )


def draw_patches(names: Sequence[str], pictures: Sequence[Pixels], features: Tensor) -> Pixels:
    """Draw a column an image, with the colors of its patches (B, D, h, w) below it."""
    columns = []
    for name, view, colors in zip(
        names, pictures, color_patches(features.movedim(1, -1)), strict=True
    ):
        fitted = fit(view, VIEW_TILE)
        columns.append((name, [fitted, enlarge(colors, *fitted.shape[:2])]))
    return draw_columns(columns)
