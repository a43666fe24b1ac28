"""Patches of some images: their features as colors, and the attention of the heads.

Shapes: B images, h x w patches, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from dino.data.photometric import build_normalization
from dino.models.dense import build_dense
from dino.models.vit import VisionTransformer
from dino.runtime.context import Run
from dino.visualization.attention_maps import ClsAttention, add_mean
from dino.visualization.look.page import Section, figure, rows
from dino.visualization.look.views import Views, draw
from dino.visualization.patch_colors import color_patches
from dino.visualization.pictures import draw_heat, to_picture
from dino.visualization.sheets import fit, name_maps
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)

SIDE = 224  # pixels of a picture of patches
LEAST_PATCHES, MOST_PATCHES = 28, 40  # a side, of the views of a ViT
COLOR_SHARE = 0.65  # weight of the colors over a picture
ATTENDED = 4  # images with attention maps


class PatchReader:
    """Views of some images, and what a backbone makes of their patches."""

    def __init__(
        self, backbone: TrainedBackbone, indices: Sequence[int], views: Views, run: Run
    ) -> None:
        """Cut the views."""
        self.backbone, self.run = backbone, run
        self.cuts = [views.cut(index, choose_side(backbone)) for index in indices]
        self.names = [views.name(index) for index in indices]
        self.pictures = [fit(to_picture(cut), SIDE) for cut in self.cuts]

    def infer(self, module: nn.Module, count: int) -> Tensor:
        """Run a module (1, C, H, W) -> (1, ...) on the first views, one by one -> (B, ...)."""
        infer = self.run.device.compile_eval(module)
        normalize = build_normalization(self.backbone.in_chans, self.backbone.normalization)
        batches = (normalize(self.run.device.to_device(cut[None])) for cut in self.cuts[:count])
        return torch.cat([infer(images).float().cpu() for images in batches])


def choose_side(backbone: TrainedBackbone) -> int:
    """The side in pixels of the views: a ViT shows finer patches in larger views."""
    if not isinstance(backbone.module, VisionTransformer):
        return backbone.image_size
    patches = backbone.image_size // backbone.patch_size
    return backbone.patch_size * min(max(patches, LEAST_PATCHES), MOST_PATCHES)


def show_colors(reader: PatchReader) -> Section:
    """The features of patches as colors over the image, fitted to all images together."""
    backbone, title = reader.backbone, "Patch features as colors"
    try:
        maps = reader.infer(build_dense(backbone.module, backbone.arch), len(reader.cuts))
    except Exception as error:  # networks of other libraries raise anything
        if isinstance(backbone.module, VisionTransformer):
            raise
        logger.info("patch features are left out: %s", error)
        return Section(title, f"Left out: {backbone.arch} has no feature map.")
    colors = color_patches(maps.permute(0, 2, 3, 1))
    lines = []
    for picture, patches, name in zip(reader.pictures, colors, reader.names, strict=True):
        gray = picture.mean(axis=2, keepdims=True)
        over = COLOR_SHARE * fit(patches, SIDE) + (1 - COLOR_SHARE) * gray
        lines.append(
            [
                figure(draw(picture), name),
                figure(draw(over.astype(np.uint8)), "", "colors"),
                figure(draw(patches, "png"), "", "patches", css="patches"),
            ]
        )
    note = (
        f"The first three principal components of the {maps.shape[2]} x {maps.shape[3]} features"
        " as red, green and blue, fitted to these images together:"
        " equal colors are equal features, also between images."
    )
    return Section(title, note, f'<div class="cards">{rows(lines)}</div>')


def show_attention(reader: PatchReader) -> Section:
    """The attention of each head of the last block, and their mean; of a ViT only."""
    backbone, title = reader.backbone, "Attention"
    if not isinstance(backbone.module, VisionTransformer):
        why = f"Left out: {backbone.arch} is not a vision transformer of this package."
        return Section(title, why)
    maps = add_mean(reader.infer(ClsAttention(backbone.module), ATTENDED))
    titles, lines = [*name_maps(maps.shape[1] - 1)[:-1], "mean"], []
    for picture, name, images in zip(reader.pictures, reader.names, maps.numpy(), strict=False):
        heats = [draw(draw_heat(picture, values)) for values in images]
        drawn = [figure(heat, "", text) for heat, text in zip(heats, titles, strict=True)]
        lines.append([figure(draw(picture), name, css="first"), *drawn])
    note = (
        "What the CLS token of the last block attends to, each map from its least to its greatest"
        " value."
    )
    return Section(title, note, rows(lines))
