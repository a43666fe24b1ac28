"""Where the CLS token of the last block looks: a map for each head (the original's visualize_attention.py).

Shapes: B images, C channels, H x W pixels, P side of a patch, h x w patches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dino.data.crops import center_crop, resize_whole
from dino.data.decode import read_image
from dino.data.demo import DemoSpec, draw_image
from dino.data.photometric import Normalization, build_normalization
from dino.data.sources import find_images
from dino.errors import DataError, OptionError
from dino.files import atomic_write
from dino.models.registry import VITS, check_arch, is_vit
from dino.models.vit import VisionTransformer
from dino.runtime.config import FrozenConfig
from dino.runtime.context import Run, make_output_folder
from dino.runtime.metrics import check_target, write_result
from dino.runtime.progress import Progress
from dino.visualization.config import AttentionConfig
from dino.visualization.pictures import (
    VIRIDIS,
    Pixels,
    Sheet,
    color,
    draw_mask,
    overlay,
    save_picture,
    to_picture,
    upsample_nearest,
)
from dino.weights.formats.mae import is_autoencoder
from dino.weights.load import load_backbone

logger = logging.getLogger(__name__)

DRAWN_SIZE = 480  # pixels, side of the picture that stands in where none is given
SHEET = "sheet.png"


class ClsAttention(nn.Module):
    """The maps of a backbone as a module, for devices to compile."""

    def __init__(self, backbone: VisionTransformer) -> None:
        """Wrap a backbone."""
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """Attention of the CLS token to every patch: (B, C, H, W) -> (B, heads, h, w), without an N x N tensor."""
        row = self.backbone.get_last_selfattention(images, queries=slice(0, 1))[:, :, 0, 1:]
        return torch.unflatten(
            row, -1, [side // self.backbone.patch_size for side in images.shape[-2:]]
        )


def keep_mass(maps: Tensor, share: float) -> Tensor:
    """The patches that hold a share of each map's attention, the strongest ones (the original's `th_attn`).

    Sorted upwards, a patch is kept once the running sum exceeds 1 - `share`: the smallest set that holds the share.

    Args:
        maps: (..., h, w), not negative.
        share: 0 to 1.

    Returns:
        (..., h, w) bool.
    """
    ranked, order = maps.flatten(-2).sort(dim=-1, stable=True)
    kept = (ranked / ranked.sum(dim=-1, keepdim=True)).cumsum(dim=-1) > 1 - share
    return torch.unflatten(torch.zeros_like(kept).scatter(-1, order, kept), -1, maps.shape[-2:])


@dataclass(frozen=True, kw_only=True)
class AttentionReader:
    """A backbone on the run's device that gives attention maps of pixels.

    Attributes:
        patch_size: P.
        in_chans: C.
        infer: (B, C, H, W) normalized on the device -> (B, heads, h, w).
        normalization: That the backbone was trained with.
        run: Where it computes.
        told: Sizes whose cut was logged.
    """

    patch_size: int
    in_chans: int
    infer: Callable[[Tensor], Tensor]
    normalization: Normalization
    run: Run
    told: set[tuple[int, int]] = field(default_factory=set)

    def read_maps(self, pixels: Tensor) -> Tensor:
        """Maps of pixels, both in host memory: (B, C, H, W) uint8 -> (B, heads, h, w) float32."""
        return self.infer(self.normalization(self.run.device.to_device(pixels))).float().cpu()

    def cut(self, image: Tensor, size: tuple[int, ...] | None, name: object) -> Tensor:
        """The view whose maps are read: resized (`resize_whole`), then as many patches as fit, from the top left.

        Raises:
            DataError: Not one patch fits; the text names the image.
        """
        resized, patch = resize_whole(image, size), self.patch_size
        height, width = resized.shape[1:]
        view = resized[:, : height - height % patch, : width - width % patch]
        if 0 in view.shape:
            raise DataError(
                f"{name}: not one patch of {patch} pixels fits into {height} x {width}",
                remedy="give a larger size",
            )
        if view.shape != resized.shape and (height, width) not in self.told:
            self.told.add((height, width))
            logger.info(
                "%d x %d pixels are no multiple of the patch size %d: cut to %d x %d",
                *(height, width, patch, *view.shape[1:]),
            )
        return view


def open_attention(config: FrozenConfig, run: Run) -> AttentionReader:
    """Load the vision transformer that the options mean.

    Raises:
        OptionError: The architecture has no attention maps.
        WeightsError: The weights do not fit.
    """
    # which network an autoencoder has, only the file tells
    if config.backbone.arch and not is_autoencoder(config.backbone.arch):
        check_arch(config.backbone.arch)
        _check_vit(config.backbone.arch)
    trained = load_backbone(config.backbone, config.weights)
    _check_vit(trained.arch)
    assert isinstance(trained.module, VisionTransformer)
    return AttentionReader(
        patch_size=trained.patch_size,
        in_chans=trained.in_chans,
        infer=run.device.compile_eval(ClsAttention(trained.module)),
        normalization=build_normalization(trained.in_chans, trained.normalization),
        run=run,
    )


def _check_vit(arch: str) -> None:
    if not is_vit(arch):
        raise OptionError(
            f"`arch` {arch} has no attention maps",
            value=arch,
            remedy=f"vision transformers have: {', '.join(VITS)}",
        )


def check_size(setting: str, size: tuple[int, ...] | None) -> None:
    """Refuse more numbers than height and width.

    Raises:
        OptionError: With the setting.
    """
    if size is not None and len(size) > 2:
        raise OptionError(
            f"{setting} got {len(size)} numbers, wants height and width, or the shorter side alone"
        )


def visualize_attention(config: AttentionConfig, run: Run) -> list[Path]:
    """Write the maps of every image, and one contact sheet of them all; gives a folder an image.

    Files of an image: `img.png` (what the backbone sees), `attention.npy` (heads, h, w) float32, and for each head J
    and for the mean over heads `attn-headJ.png`, `overlay-headJ.png` and, with a threshold T, `mask_thT_headJ.png`.
    One process does all the work. Where an image cannot be read, the sheet and `json` tell of those before it.

    Raises:
        DinoError: Wrong weights, an architecture without maps, missing or unreadable images, no place to write to.
    """
    given = config.pictures.image_path or ()
    check_size("`image_size`", config.pictures.image_size)
    if not run.processes.is_rank_zero:
        return []
    paths = [image for path in given for image in find_images(path, "`image_path`")]
    output = make_output_folder(config.output.output_dir)
    check_target(config.report.json)
    reader = open_attention(config, run)
    alone = not given or (len(given) == 1 and Path(given[0]).is_file())
    folders = [output] if alone else [output / name for name in name_folders(paths)]
    sheet, progress, found = Sheet(output / SHEET), Progress(len(folders), "attention maps"), []
    images: Sequence[Path | None] = paths or [None]
    try:
        for done, (folder, path) in enumerate(zip(folders, images, strict=True), start=1):
            view, heads = _read(path, config.pictures.image_size, reader)
            maps = torch.cat([heads, heads.mean(dim=0, keepdim=True)])
            _save_maps(
                make_output_folder(str(folder)), to_picture(view), maps, config.mask.threshold
            )
            sheet.add(to_picture(view), maps.numpy())
            found.append(
                {"image": path and str(path), "folder": str(folder), "grid": list(heads.shape[1:])}
            )
            progress.advance(done)
    finally:  # one bad image in a folder does not take the sheet of those before it along
        progress.close()
        if found:
            sheets = [str(path) for path in sheet.close()]
            logger.info(
                "attention maps of %d image%s: %s",
                len(found),
                "s" * (len(found) > 1),
                " ".join(sheets),
            )
            write_result(config.report.json, {"images": found, "sheets": sheets})
    return folders


def name_folders(paths: Sequence[Path]) -> list[str]:
    """A folder name for each image: its own without the extension, and a number where that is taken."""
    taken, names = {SHEET}, []
    for path in paths:
        name, number = path.stem, 1
        while name.casefold() in taken:  # some file systems do not tell A from a
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _read(
    path: Path | None, size: tuple[int, ...], reader: AttentionReader
) -> tuple[Tensor, Tensor]:
    """One image's view (C, H, W) uint8 and its maps (heads, h, w)."""
    image = _draw(reader.in_chans) if path is None else read_image(path, reader.in_chans)
    view = reader.cut(image, size, path or "`image_size`")
    return view, reader.read_maps(view[None])[0]


def _draw(channels: int) -> Tensor:
    """A picture where none is given: no package that this one needs brings a photograph, so it is one of the demo's."""
    if channels > 3:
        raise DataError(
            f"`image_path` is missing: this backbone wants .npy files of {channels} channels"
        )
    logger.info("no `image_path`: an image of the embedded demo data set")
    drawn = draw_image(0, 0, "val", spec=DemoSpec(image_size=DRAWN_SIZE))
    return torch.from_numpy(drawn).permute(2, 0, 1)[:channels]


def _save_maps(folder: Path, picture: Pixels, maps: Tensor, threshold: float | None) -> None:
    """Write one image's files; `maps` are the heads' and, last, their mean."""
    patch_size = picture.shape[0] // maps.shape[1]
    names = [*(f"head{number}" for number in range(len(maps) - 1)), "mean"]
    save_picture(folder / "img.png", picture)
    with atomic_write(folder / "attention.npy", "") as temporary, temporary.open("wb") as file:
        np.save(file, maps[:-1].numpy())
    for name, values in zip(names, maps.numpy(), strict=True):
        heat = upsample_nearest(color(values, VIRIDIS), patch_size)
        save_picture(folder / f"attn-{name}.png", heat)
        save_picture(folder / f"overlay-{name}.png", overlay(picture, heat))
    if threshold is not None:
        for name, kept in zip(names, keep_mass(maps, threshold).numpy(), strict=True):
            save_picture(
                folder / f"mask_th{threshold}_{name}.png",
                draw_mask(picture, upsample_nearest(kept, patch_size)),
            )


def draw_sheet(
    backbone: VisionTransformer,
    paths: Sequence[Path],
    *,
    size: int,
    normalization: Normalization,
    target: Path,
) -> Path:
    """Write one contact sheet of center crops.

    Args:
        backbone: In eval mode, on the host.
        paths: Image files.
        size: Side in pixels of the center crop that the backbone sees.
        normalization: That the backbone was trained with.
        target: PNG to write.

    Raises:
        DataError: An image cannot be decoded.
        OptionError: The target cannot be written.
    """
    views = torch.stack(
        [center_crop(read_image(path, len(normalization.mean)), size) for path in paths]
    )
    with torch.inference_mode():
        maps = ClsAttention(backbone)(normalization(views)).numpy()
    make_output_folder(str(target.parent))
    sheet = Sheet(target)
    for view, heads in zip(views, maps, strict=True):
        sheet.add(to_picture(view), heads)
    return sheet.close()[0]
