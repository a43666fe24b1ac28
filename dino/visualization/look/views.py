"""Images as the backbone gets them, as pictures in a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from dino.data.crops import center_crop
from dino.data.image_source import ImageSource
from dino.visualization.look.page import Section, as_data, figure, rows
from dino.visualization.pictures import Pixels, to_picture
from dino.weights.load import TrainedBackbone

THUMBNAIL = 128  # pixels, side of an image in a row
JPEG_QUALITY = 85  # %
MOST_ROWS, MOST_IMAGES = 12, 16  # in a section, in a row


class Views:
    """The center crops of a set of images: the part that the backbone gets, at any size."""

    def __init__(self, source: ImageSource, backbone: TrainedBackbone) -> None:
        """Read images of `source` as the backbone does."""
        self.source, self.channels = source.ranged(backbone.pixel_range), backbone.in_chans
        self.drawn: dict[tuple[int, int], str] = {}

    def cut(self, index: int, side: int) -> Tensor:
        """The view of an image: (C, side, side) uint8.

        Raises:
            DataError: The image cannot be read.
        """
        return center_crop(self.source.read(index, self.channels), side)

    def draw(self, index: int, side: int = THUMBNAIL) -> str:
        """The view as the data address of a picture; drawn once.

        Raises:
            DataError: The image cannot be read.
        """
        key = index, side
        if key not in self.drawn:
            self.drawn[key] = draw(to_picture(self.cut(index, side)))
        return self.drawn[key]

    def name(self, index: int) -> str:
        """The name of an image."""
        return self.source.names[index]


def draw(pixels: Pixels, kind: str = "jpeg") -> str:
    """Write (H, W, 3) uint8 as the data address of a picture."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, quality=JPEG_QUALITY, optimize=True)
    return as_data(file.getvalue(), kind)


def show_rows(
    title: str,
    note: str,
    lines: Sequence[Sequence[tuple[int, float]]],
    views: Views,
    *,
    related: bool = True,
) -> Section:
    """Rows of images with similarities.

    Args:
        title: The section's title.
        note: How to read it.
        lines: Images by index, each with its similarity.
        views: Draws the images.
        related: The similarities are those to the first image of a row, which shows none.
    """
    drawn = []
    for line in lines[:MOST_ROWS]:
        figures = []
        for place, (index, value) in enumerate(line[:MOST_IMAGES]):
            first = related and place == 0
            caption, css = ("", "first") if first else (f"{value:.3f}", "")
            figures.append(figure(views.draw(index), views.name(index), caption, css=css))
        drawn.append(figures)
    if len(lines) > MOST_ROWS:
        note = f"{note} The first {MOST_ROWS} are shown."
    return Section(
        title,
        note,
        f'<div class="groups">{rows(drawn)}</div>' if related else rows(drawn, "wrap"),
    )
