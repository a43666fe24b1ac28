"""What is wrong with an image file, and which files of a source are worth training on.

Corrupt is what training itself could not read: the same decoder says so. Letters: N images, C channels.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from dino.data.decode import read_image
from dino.data.image_source import ImageSource
from dino.errors import DataError

USUAL_MODES = {
    "L",
    "RGB",
}  # Pillow's names; all others lose or change something on the way to pixels
DIGEST_BYTES = 16


class Inspection(NamedTuple):
    """What one file is like.

    Attributes:
        corrupt: Why it cannot be read, or None.
        tiny: Its size, if that is too small, or None.
        odd: How it is stored, if that is unusual, or None.
        digest: Of the file's bytes; equal files have equal ones. Empty if it cannot be read.
    """

    corrupt: str | None
    tiny: str | None
    odd: str | None
    digest: bytes


class InspectionDataset(Dataset[Inspection]):
    """Index -> what that file is like."""

    def __init__(self, source: ImageSource, *, channels: int, min_size: int) -> None:
        """Keep the list; nothing is read yet.

        Args:
            source: The images.
            channels: C that training will ask for.
            min_size: Pixels; an image whose shorter side has fewer is tiny.
        """
        self.source, self.channels, self.min_size = source, channels, min_size

    def __len__(self) -> int:
        """N."""
        return len(self.source)

    def __getitem__(self, index: int) -> Inspection:
        """Decode one file whole."""
        path = self.source.path(index)
        try:
            _, height, width = read_image(path, self.channels).shape
            digest = hashlib.blake2b(path.read_bytes(), digest_size=DIGEST_BYTES).digest()
            odd = find_oddity(path)
        except (DataError, OSError) as error:
            return Inspection(" ".join(str(error).split()), None, None, b"")
        tiny = f"{width} x {height} pixels" if min(height, width) < self.min_size else None
        return Inspection(None, tiny, odd, digest)


def find_oddity(path: Path) -> str | None:
    """What decoding changes or leaves away beyond turning gray into color (docs/data.md), or None.

    Raises:
        OSError: The file cannot be read.
    """
    if path.suffix.lower() == ".npy":
        return None
    with Image.open(path) as picture:
        frames = getattr(picture, "n_frames", 1)
        stored = (
            str(picture.tile[0][3]) if picture.tile else ""
        )  # "RGB;16B" becomes RGB without a word
        if picture.mode not in USUAL_MODES:
            return f"mode {picture.mode}"
        if ";16" in stored:
            return "16 bits a level"
        if "transparency" in picture.info:
            return f"mode {picture.mode} with transparency"
    return f"{frames} frames, of which the first counts" if frames > 1 else None


class Digests:
    """The digests of N files in 16 bytes each, to find equal ones without keeping anything else."""

    def __init__(self, count: int) -> None:
        """None is known yet."""
        self.rows = np.zeros((count, DIGEST_BYTES), np.uint8)
        self.known = np.zeros(count, bool)

    def keep(self, index: int, digest: bytes) -> None:
        """Remember one; an empty one stands for a file that equals no other."""
        if digest:
            self.rows[index], self.known[index] = np.frombuffer(digest, np.uint8), True

    def find_duplicates(self) -> dict[int, int]:
        """Each later one of equal files to the first one of them, in order."""
        places = np.flatnonzero(self.known)
        halves = self.rows[places].view(np.uint64)
        order = np.lexsort(halves.T)  # stable: of equal ones the first stays in front
        repeats = np.zeros(len(order), bool)
        repeats[1:] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
        first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
        later, earlier = places[order[repeats]], places[order[first[repeats]]]
        return dict(sorted(zip(later.tolist(), earlier.tolist(), strict=True)))
