"""Names of the files of attention maps, and the picture that is drawn without an input."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dino.data.demo import DemoSpec, draw_image
from dino.errors import DataError

logger = logging.getLogger(__name__)

Images = Mapping[Path, Path | None]  # by the folder of their files; None is drawn

SHEET = "sheet.png"
SHEETS = re.compile(r"sheet(-\d+)?\.png")
DRAWN_SIZE = 480  # pixels, side of the picture drawn if no image is given
OF_IMAGE = re.compile(
    r"img\.png|attention\.npy|(attn|overlay)-(head\d+|mean)\.png|mask_th.+_(head\d+|mean)\.png"
)


def name_folders(paths: Sequence[Path]) -> list[str]:
    """A folder name per image: its file name without extension, numbered if already taken."""
    taken, names = {SHEET}, []
    for path in paths:
        name, number = path.stem, 1
        while name.casefold() in taken:  # some file systems ignore case
            number += 1
            name = f"{path.stem}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def list_outputs(output: Path, folders: Sequence[Path]) -> list[Path]:
    """The existing files that have the names of a run's outputs.

    Args:
        output: Folder of the sheets.
        folders: Folders of the images.
    """
    pairs = [(output, SHEETS), *((folder, OF_IMAGE) for folder in folders if folder.is_dir())]
    return [
        path for folder, names in pairs for path in folder.iterdir() if names.fullmatch(path.name)
    ]


def draw_input(channels: int) -> Tensor:
    """Draw a demo image, because no dependency of this package includes a photograph."""
    if channels > 3:
        raise DataError(
            f"`image_path` is missing: this backbone needs .npy files of {channels} channels"
        )
    logger.info("no `image_path`: using an image of the built-in demo data set")
    drawn = draw_image(0, 0, "val", spec=DemoSpec(image_size=DRAWN_SIZE))
    return torch.from_numpy(drawn).permute(2, 0, 1)[:channels]
