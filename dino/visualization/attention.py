"""Pictures of attention maps (the original's visualize_attention.py).

Shapes: B images, C channels, H x W pixels, P side of a patch, h x w patches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dino.data.crops import center_crop
from dino.data.decode import read_image
from dino.data.levels import PixelRange
from dino.data.photometric import Normalization, build_normalization
from dino.data.sources import find_images
from dino.errors import DataError, OptionError
from dino.files import MARK, atomic_write
from dino.models.registry import VITS, check_arch, is_vit
from dino.models.vit import VisionTransformer
from dino.runtime.config import FrozenConfig
from dino.runtime.context import Run, make_output_folder
from dino.runtime.folder_lock import hold_folder
from dino.runtime.metrics import check_target, write_result
from dino.runtime.ownership import check_own
from dino.runtime.progress import Progress
from dino.visualization.attention_files import (
    SHEET,
    Images,
    draw_input,
    list_outputs,
    name_folders,
)
from dino.visualization.attention_maps import ClsAttention, add_mean, keep_mass
from dino.visualization.config import AttentionConfig
from dino.visualization.pictures import (
    VIRIDIS,
    Pixels,
    color,
    draw_heat,
    draw_mask,
    resize_whole,
    save_picture,
    to_picture,
    upsample_nearest,
)
from dino.visualization.sheets import Sheet, name_maps
from dino.weights.formats.mae import is_autoencoder
from dino.weights.load import load_backbone

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttentionReader:
    """A backbone on the run's device that computes attention maps of pixels.

    Attributes:
        patch_size: P.
        in_chans: C.
        infer: (B, C, H, W) normalized on the device -> (B, heads, h, w).
        normalization: The normalization used in training.
        pixel_range: Levels that become black and white where they have more than 8 bits.
        run: The run that provides the device.
        told: Sizes whose cropping was logged.
    """

    patch_size: int
    in_chans: int
    infer: Callable[[Tensor], Tensor]
    normalization: Normalization
    run: Run
    pixel_range: PixelRange | None = None
    told: set[tuple[int, int]] = field(default_factory=set)

    def read_maps(self, pixels: Tensor) -> Tensor:
        """Maps of pixels, both in host memory: (B, C, H, W) uint8 -> (B, heads, h, w) float32."""
        return self.infer(self.normalization(self.run.device.to_device(pixels))).float().cpu()

    def cut(self, image: Tensor, size: tuple[int, ...] | None, name: object) -> Tensor:
        """Resize an image (`resize_whole`), then crop it to whole patches from the top left.

        Raises:
            DataError: The image is smaller than one patch; the text names it.
        """
        resized, patch = resize_whole(image, size), self.patch_size
        height, width = resized.shape[1:]
        view = resized[:, : height - height % patch, : width - width % patch]
        if 0 in view.shape:
            raise DataError(
                f"{name} must be at least one patch of {patch} pixels (got {height} x {width})",
                remedy="use a larger size",
            )
        if view.shape != resized.shape and (height, width) not in self.told:
            self.told.add((height, width))
            logger.info(
                "%d x %d pixels are not a multiple of the patch size %d: cropped to %d x %d",
                *(height, width, patch, *view.shape[1:]),
            )
        return view


def open_attention(config: FrozenConfig, run: Run) -> AttentionReader:
    """Load the vision transformer that the settings specify.

    Raises:
        OptionError: The architecture has no attention maps.
        WeightsError: The weights do not fit.
    """
    # The architecture of an autoencoder is known only from its file.
    if config.backbone.arch and not is_autoencoder(config.backbone.arch):
        check_arch(config.backbone.arch)
        _check_vit(config.backbone.arch)
    trained = load_backbone(config.backbone, config.weights, pixel_range=config.pixels.pixel_range)
    _check_vit(trained.arch)
    assert isinstance(trained.module, VisionTransformer)
    return AttentionReader(
        patch_size=trained.patch_size,
        in_chans=trained.in_chans,
        pixel_range=trained.pixel_range,
        infer=run.device.compile_eval(ClsAttention(trained.module)),
        normalization=build_normalization(trained.in_chans, trained.normalization),
        run=run,
    )


def _check_vit(arch: str) -> None:
    if not is_vit(arch):
        raise OptionError(
            f"`arch` {arch} has no attention maps",
            value=arch,
            remedy=f"choose a vision transformer: {', '.join(VITS)}",
        )


def check_size(setting: str, size: tuple[int, ...] | None) -> None:
    """Reject more than two numbers.

    Raises:
        OptionError: The text names the setting.
    """
    if size is not None and len(size) > 2:
        raise OptionError(
            f"{setting} must be height and width, or the shorter side (got {len(size)} numbers)"
        )


def visualize_attention(config: AttentionConfig, run: Run) -> list[Path]:
    """Write the attention maps of every image and a contact sheet; return one folder per image.

    Files of an image: `img.png` (the backbone's input), `attention.npy` (heads, h, w) float32, and
    for each head J and the mean over heads `attn-headJ.png`, `overlay-headJ.png` and, with a
    threshold T, `mask_thT_headJ.png`. One process does all the work. If an image cannot be read,
    the sheet and `json` contain the images before it.

    Raises:
        DinoError: Wrong weights, an architecture without attention maps, missing or unreadable
            images, or an output path that is not writable.
    """
    inputs = config.pictures.image_path or ()
    check_size("`image_size`", config.pictures.image_size)
    if not run.processes.is_rank_zero:
        return []
    paths = [image for path in inputs for image in find_images(path, "`image_path`")]
    output = make_output_folder(config.output.output_dir)
    check_target(config.report.json)
    reader = open_attention(config, run)
    alone = not inputs or (len(inputs) == 1 and Path(inputs[0]).is_file())
    folders = [output] if alone else [output / name for name in name_folders(paths)]
    with hold_folder(output, first=True):
        check_own(list_outputs(output, folders))
        images: Sequence[Path | None] = paths or [None]
        _draw_images(config, reader, output, dict(zip(folders, images, strict=True)))
    return folders


def _draw_images(
    config: AttentionConfig, reader: AttentionReader, output: Path, images: Images
) -> None:
    """Write the files of every image, by folder, then the sheet and `json`."""
    sheet, progress, entries = Sheet(output / SHEET), Progress(len(images), "attention maps"), []
    try:
        for done, (folder, path) in enumerate(images.items(), start=1):
            view, heads = _read(path, config.pictures.image_size, reader)
            maps = add_mean(heads)
            target = make_output_folder(str(folder))
            _save_maps(target, to_picture(view), maps, config.mask.threshold)
            name = path.name if path else "demo image"
            sheet.add(to_picture(view), maps.numpy(), name_maps(len(heads)), name)
            grid = list(heads.shape[1:])
            entries.append({"image": path and str(path), "folder": str(folder), "grid": grid})
            progress.advance(done)
    finally:  # one bad image must not lose the sheet of those before it
        progress.close()
        if entries:
            sheets = [str(path) for path in sheet.close()]
            logger.info("images with attention maps: %d; %s", len(entries), " ".join(sheets))
            write_result(config.report.json, {"images": entries, "sheets": sheets})


def _read(
    path: Path | None, size: tuple[int, ...], reader: AttentionReader
) -> tuple[Tensor, Tensor]:
    """One image's view (C, H, W) uint8 and its maps (heads, h, w)."""
    if path is None:
        image = draw_input(reader.in_chans)
    else:
        image = read_image(path, reader.in_chans, pixel_range=reader.pixel_range)
    view = reader.cut(image, size, path or "`image_size`")
    return view, reader.read_maps(view[None])[0]


def _save_maps(folder: Path, picture: Pixels, maps: Tensor, threshold: float | None) -> None:
    """Write one image's files; `maps` are those of the heads, then their mean."""
    patch_size = picture.shape[0] // maps.shape[1]
    names = [*(f"head{number}" for number in range(len(maps) - 1)), "mean"]
    save_picture(folder / "img.png", picture)
    with atomic_write(folder / "attention.npy", "") as temporary, temporary.open("wb") as file:
        np.save(file, maps[:-1].numpy())
        file.write(MARK.encode())  # after the array, where readers have stopped
    for name, values in zip(names, maps.numpy(), strict=True):
        heat = upsample_nearest(color(values, VIRIDIS), patch_size)
        save_picture(folder / f"attn-{name}.png", heat)
        save_picture(folder / f"overlay-{name}.png", draw_heat(picture, values))
    if threshold is not None:
        for name, kept in zip(names, keep_mass(maps, threshold).numpy(), strict=True):
            masked = draw_mask(picture, upsample_nearest(kept, patch_size))
            save_picture(folder / f"mask_th{threshold}_{name}.png", masked)


def draw_sheet(
    backbone: VisionTransformer,
    paths: Sequence[Path],
    *,
    size: int,
    normalization: Normalization,
    target: Path,
) -> Path:
    """Write a contact sheet of center crops.

    Args:
        backbone: In eval mode, on the host.
        paths: Image files.
        size: Side in pixels of the center crop that the backbone receives.
        normalization: The normalization used in training.
        target: PNG to write.

    Raises:
        DataError: An image cannot be decoded.
        OptionError: The target cannot be written.
    """
    views = torch.stack(
        [center_crop(read_image(path, len(normalization.mean)), size) for path in paths]
    )
    with torch.inference_mode():
        heads = ClsAttention(backbone)(normalization(views))
    make_output_folder(str(target.parent))
    sheet = Sheet(target)
    for path, view, maps in zip(paths, views, add_mean(heads).numpy(), strict=True):
        name = "/".join(path.parts[-2:])  # the folder is the class
        sheet.add(to_picture(view), maps, name_maps(heads.shape[1]), name)
    return sheet.close()[0]
