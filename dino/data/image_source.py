"""A list of images that are read by index."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dino.data.columns import join_names, pack_names, pack_numbers
from dino.data.decode import Box, Stored, read_highest, read_image, read_size
from dino.data.levels import PixelRange
from dino.data.listing import Passed, describe
from dino.data.shards import Members
from dino.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

Source = TypeVar("Source", bound="ImageSource")
MOST_CLASSES = 1_000_000  # each has a name in memory


def number_classes(labels: Sequence[int]) -> tuple[str, ...]:
    """Class names for classes that have only numbers: those from 0 to the highest.

    Raises:
        DataError: The highest is too large to be the number of a class.
    """
    highest = max(labels)
    if highest >= MOST_CLASSES:
        raise DataError(
            f"the class numbers go up to {highest}, beyond {MOST_CLASSES - 1}",
            remedy="number the classes from 0",
        )
    return tuple(map(str, range(highest + 1)))


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """A list of images, each a file, a member of a shard or a row of a table.

    Attributes:
        root: Folder that `names` are relative to, or that contains the shards or tables.
        names: File names, in the order of the dataset's indices; many are packed (`columns`).
        labels: Class index of each image, or None without class folders; packed like names.
        classes: Class names, by number.
        boxes: The region of each picture to use, in pixels of the stored picture; None for all of
            a picture, or for all of every picture.
        pixel_range: Levels that become black and white where they have more than 8 bits.
        members: Locations of the images in shards or tables, or None if they are files.
        origin: What the images are, and where.
        passed: What else is there and is not used.
    """

    root: Path
    names: Sequence[str]
    labels: Sequence[int] | None = None
    classes: tuple[str, ...] = ()
    boxes: tuple[Box | None, ...] | None = None
    pixel_range: PixelRange | None = None
    members: Members | None = field(default=None, compare=False)
    origin: str = field(default="", compare=False)
    passed: Passed = field(default_factory=dict, compare=False)

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.names)

    def describe(self) -> str:
        """What a run says about its images: origin, numbers, and what it passes over."""
        labels = f" in {len(self.classes)} classes" if self.classes else ", no classes"
        passed = f"; passed over: {describe(self.passed)}" if self.passed else ""
        return f"{self.origin or self.root}, {len(self)} images{labels}{passed}"

    def path(self, index: int) -> Path:
        """Path of image `index`, if it is a file."""
        return self.root / self.names[index]

    def file(self, index: int) -> str | Stored:
        """What `read_image` reads for image `index`."""
        if self.members:
            return self.members.member(index, self.names[index])
        # No Path: each interns its parts, and the table of all interned strings would grow with
        # the images in every loader process.
        return os.path.join(self.root, self.names[index])

    def expect(self, indices: Sequence[int]) -> None:
        """Tell which images are read next, in order; those behind URLs are fetched meanwhile."""
        if self.members:
            self.members.expect(indices)

    def read(self, index: int, channels: int, *, whole: bool = False) -> Tensor:
        """Image `index`, cropped to its box if it has one, as (C, H, W) uint8.

        Args:
            index: Index of the image.
            channels: C.
            whole: Ignore the box and read the whole image.

        Raises:
            DataError: It cannot be read as an image with that many channels.
        """
        box = None if whole else self.box(index)
        return read_image(self.file(index), channels, box, pixel_range=self.pixel_range)

    def read_labelled(self, index: int, channels: int) -> tuple[Tensor, int]:
        """Image `index` as `read` returns it, and its label, or -1 without labels.

        Raises:
            DataError: It cannot be read as an image with that many channels.
        """
        return self.read(index, channels), -1 if self.labels is None else self.labels[index]

    def box(self, index: int) -> Box | None:
        """The region of image `index` to use; None for all of it."""
        return self.boxes[index] if self.boxes else None

    def read_size(self, index: int) -> tuple[int, int]:
        """(H, W) of picture `index`, or of its box, read from the file's header.

        Raises:
            DataError: The file is missing or not a picture, or the box is outside it.
        """
        return read_size(self.file(index), self.box(index))

    def read_highest(self, index: int) -> int | None:
        """The highest level of picture `index` if it has 16 unsigned bits; otherwise None."""
        return read_highest(self.file(index))

    def ranged(self, pixel_range: PixelRange | None) -> ImageSource:
        """The same images, read with this range."""
        return replace(self, pixel_range=pixel_range)

    def fingerprint(self) -> str:
        """A digest of the names: equal for equal data, wherever it is mounted."""
        return hashlib.sha256(join_names(self.names)).hexdigest()[:16]

    def packed(self: Source) -> Source:
        """The same images; what is long is in files that loader processes share."""
        return replace(
            self,
            names=pack_names(self.names),
            labels=None if self.labels is None else pack_numbers(self.labels),
            members=self.members and self.members.packed(),
        )

    def limited(self, limit: int | None) -> ImageSource:
        """At most `limit` images, evenly spaced, so that classes keep their proportions."""
        if limit is None or limit >= len(self):
            return self
        chosen = self.selected([index * len(self) // limit for index in range(limit)])
        return replace(chosen, origin=f"{chosen.origin} (`data_limit` of {len(self)})")

    def selected(self, indices: Sequence[int]) -> ImageSource:
        """The images with the given indices, in the given order."""
        labels = None if self.labels is None else tuple(self.labels[index] for index in indices)
        boxes = None if self.boxes is None else tuple(self.boxes[index] for index in indices)
        names = tuple(self.names[index] for index in indices)
        members = self.members and self.members.selected(indices)
        chosen = replace(self, names=names, labels=labels, boxes=boxes, members=members)
        return chosen.packed()
