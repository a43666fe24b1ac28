"""A list of images, read by index."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dino.data.decode import Box, read_image, read_size
from dino.data.shards import Member, Members

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """A list of images, each in a file of its own or a member of a shard.

    Attributes:
        root: Folder that `names` are relative to, or that the shards lie in.
        names: File names, in the order of the data set's indices.
        labels: Class index of each name, or None where there are no class folders.
        classes: Class names, sorted.
        boxes: The part of each picture that is meant, in pixels of the stored picture, or None where all of it is.
        members: Where the images lie in shards, or None where they are files.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    boxes: tuple[Box | None, ...] | None = None
    members: Members | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.names)

    def path(self, index: int) -> Path:
        """Path of image `index`, if it is a file."""
        return self.root / self.names[index]

    def file(self, index: int) -> Path | Member:
        """What `read_image` reads for image `index`."""
        return self.members.member(index, self.names[index]) if self.members else self.path(index)

    def read(self, index: int, channels: int, *, whole: bool = False) -> Tensor:
        """Image `index`, or the part of it that is meant, as (C, H, W) uint8.

        Args:
            index: Of the image.
            channels: C.
            whole: Read all of it, whatever part is meant.

        Raises:
            DataError: It cannot be read as an image of so many channels.
        """
        return read_image(self.file(index), channels, None if whole else self.box(index))

    def read_labelled(self, index: int, channels: int) -> tuple[Tensor, int]:
        """Image `index`, as `read` gives it, and its label, -1 where it has none.

        Raises:
            DataError: It cannot be read as an image of so many channels.
        """
        return self.read(index, channels), -1 if self.labels is None else self.labels[index]

    def box(self, index: int) -> Box | None:
        """The part of image `index` that is meant."""
        return self.boxes[index] if self.boxes else None

    def read_size(self, index: int) -> tuple[int, int]:
        """(H, W) of picture `index`, or of its box, from the file's header.

        Raises:
            DataError: The file is missing or no picture, or the box lies outside of it.
        """
        return read_size(self.file(index), self.box(index))

    def fingerprint(self) -> str:
        """A digest of the names, equal for equal data wherever it is mounted."""
        return hashlib.sha256("\n".join(self.names).encode("utf-8", "surrogateescape")).hexdigest()[
            :16
        ]

    def limited(self, limit: int | None) -> ImageSource:
        """At most `limit` images, evenly spaced, so that every class folder keeps its share."""
        if limit is None or limit >= len(self):
            return self
        return self.selected([index * len(self) // limit for index in range(limit)])

    def selected(self, indices: Sequence[int]) -> ImageSource:
        """The images of these indices, in their order."""
        labels = None if self.labels is None else tuple(self.labels[index] for index in indices)
        boxes = None if self.boxes is None else tuple(self.boxes[index] for index in indices)
        names = tuple(self.names[index] for index in indices)
        members = self.members and self.members.selected(indices)
        return replace(self, names=names, labels=labels, boxes=boxes, members=members)
