"""Contact sheets: titled tiles in rows, and sheets of attention maps.

Shapes: h x w patches, H x W pixels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dino.visualization.pictures import Pixels, draw_heat, save_picture

TILE = 192  # pixels, the longer side of one picture in a sheet
GAP = 4  # pixels between two tiles
FONT = 12  # pixels, height of the letters
LINE = 15  # pixels, height of a line of text
INK = "white"
SHEET_ROWS = 50  # rows per sheet; further rows start another sheet, which bounds memory


class Sheet:
    """A contact sheet with one row per image: the image, then each map over it."""

    def __init__(self, path: Path) -> None:
        """Collect rows for the PNG `path`; further sheets are named `STEM-2.png` and so on."""
        self.path, self.rows = path, list[Pixels]()
        self.written: list[Path] = []

    def add(
        self, picture: Pixels, maps: NDArray[np.float32], titles: Sequence[str], name: str
    ) -> None:
        """Add the row of a picture (H, W, 3) called `name` and its titled maps (M, h, w).

        Raises:
            OptionError: A full sheet cannot be written.
        """
        self.rows.append(draw_row(picture, maps, titles, name))
        if len(self.rows) == SHEET_ROWS:
            self._write()

    def close(self) -> list[Path]:
        """Write the remaining rows and return the paths of all sheets.

        Raises:
            OptionError: The sheet cannot be written.
        """
        if self.rows:
            self._write()
        return self.written

    def _write(self) -> None:
        number = len(self.written) + 1
        path = self.path if number == 1 else self.path.with_stem(f"{self.path.stem}-{number}")
        save_picture(path, np.concatenate(self.rows))
        self.written.append(path)
        self.rows = []


def draw_row(
    picture: Pixels, maps: NDArray[np.float32], titles: Sequence[str], name: str, side: int = TILE
) -> Pixels:
    """Draw a picture and its maps (M, h, w) over it as titled tiles in a row.

    Args:
        picture: (H, W, 3).
        maps: Attention of each patch, not negative.
        titles: What each map is.
        name: What the picture is.
        side: Of a tile, in pixels.
    """
    fitted = fit(picture, side)
    tiles = [draw_tile(fitted, [name, " x ".join(map(str, picture.shape[:2]))], side)]
    for title, values in zip(titles, maps, strict=True):
        heat = draw_heat(fitted, values)
        tiles.append(draw_tile(heat, [title, describe_map(values)], side))
    return np.concatenate(tiles, axis=1)


def draw_columns(columns: Sequence[tuple[str, Sequence[Pixels]]]) -> Pixels:
    """Arrange pictures in titled columns; a row is as high as its highest picture."""
    heights = [
        max(len(picture) for picture in row)
        for row in zip(*(pictures for _, pictures in columns), strict=True)
    ]
    drawn = []
    for title, pictures in columns:
        width = max(picture.shape[1] for picture in pictures)
        cells = [
            np.pad(
                picture, ((0, height + GAP - len(picture)), (0, width - picture.shape[1]), (0, 0))
            )
            for picture, height in zip(pictures, heights, strict=True)
        ]
        drawn.append(np.pad(add_title(np.concatenate(cells), title), ((0, 0), (0, GAP), (0, 0))))
    return np.concatenate(drawn, axis=1)


def name_maps(heads: int) -> list[str]:
    """Titles of the maps of each head and of their mean."""
    return [*(f"head {number}" for number in range(heads)), f"mean of {heads} heads"]


def describe_map(values: NDArray[np.float32]) -> str:
    """State a map's mean, and its entropy relative to that of a uniform map.

    A CLS token pays the mean x patches to patches, and the rest of 1 to itself.
    """
    shares = values.astype(np.float64).ravel() / max(float(values.sum()), 1e-12)
    entropy = -(shares * np.log(shares.clip(min=1e-12))).sum()
    uniform = math.log(values.size) if values.size > 1 else 1.0
    return f"mean {values.mean():#.2g}  entropy {max(0.0, entropy / uniform):.1%}"


def fit(picture: Pixels, side: int) -> Pixels:
    """Scale a picture (H, W, 3) smoothly so that its longer side has `side` pixels."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))


def draw_tile(picture: Pixels, lines: Sequence[str], side: int) -> Pixels:
    """Center a picture, no larger than `side`, in a tile below its lines of text."""
    height, width = picture.shape[:2]
    tile = Image.new("RGB", (side + GAP, side + GAP + LINE * len(lines)))
    place = (side - width) // 2, LINE * len(lines) + (side - height) // 2
    tile.paste(Image.fromarray(picture), place)
    for number, line in enumerate(lines):
        write_text(tile, line, (2, LINE * number), side)
    return np.asarray(tile)


def add_title(picture: Pixels, line: str) -> Pixels:
    """Write a line of text above a picture (H, W, 3): (H + LINE, W, 3)."""
    height, width = picture.shape[:2]
    titled = Image.new("RGB", (width, height + LINE))
    titled.paste(Image.fromarray(picture), (0, LINE))
    write_text(titled, line, (2, 0), width)
    return np.asarray(titled)


def write_text(picture: Image.Image, text: str, place: tuple[int, int], room: int) -> None:
    """Write a line at `place` (x, y); what does not fit into `room` pixels goes from its middle."""
    font, kept = load_font(), len(text)
    shown = text
    while font.getlength(shown) > room - 4 and kept > 1:
        kept -= 1
        shown = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    ImageDraw.Draw(picture).text(place, shown, fill=INK, font=font)


@functools.cache
def load_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font that comes with Pillow."""
    return ImageFont.load_default(FONT)
