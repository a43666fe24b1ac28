"""Checking image files: which of them are corrupt, tiny, oddly stored or duplicates.

A file is corrupt if training could not read it; the same decoder decides. Letters: N images,
C channels.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from dino.data.decode import open_picture, read_file, read_image
from dino.data.image_source import ImageSource
from dino.errors import DataError

# Pillow's names; other modes lose or change information in decoding.
USUAL_MODES = {"L", "RGB"}
DIGEST_BYTES = 16


class Inspection(NamedTuple):
    """Findings about one file.

    Attributes:
        corrupt: Why it cannot be read, or None.
        tiny: Its size if that is too small, or None.
        odd: How it is stored if that is unusual, or None.
        digest: Digest of the file's bytes; empty if it cannot be read.
    """

    corrupt: str | None
    tiny: str | None
    odd: str | None
    digest: bytes


class InspectionDataset(Dataset[Inspection]):
    """Index -> findings about that file."""

    def __init__(self, source: ImageSource, *, channels: int, min_size: int) -> None:
        """Store the source; nothing is read yet.

        Args:
            source: The images.
            channels: C that training will use.
            min_size: In pixels; an image with a shorter side below this is tiny.
        """
        self.source, self.channels, self.min_size = source, channels, min_size

    def __len__(self) -> int:
        """N."""
        return len(self.source)

    def __getitem__(self, index: int) -> Inspection:
        """Decode and inspect one file."""
        file = self.source.file(index)
        try:
            _, height, width = read_image(
                file, self.channels, pixel_range=self.source.pixel_range
            ).shape
            content = read_file(file)
            digest = hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
            odd = None if str(file).lower().endswith(".npy") else find_oddity(content)
        except (DataError, OSError) as error:
            return Inspection(" ".join(str(error).split()), None, None, b"")
        tiny = f"{width} x {height} pixels" if min(height, width) < self.min_size else None
        return Inspection(None, tiny, odd, digest)


def find_oddity(content: bytes) -> str | None:
    """What decoding a picture changes or drops, other than turning gray into color, or None.

    See docs/data.md.

    Raises:
        OSError: It is no picture.
    """
    with open_picture(content) as picture:
        frames = getattr(picture, "n_frames", 1)
        # Pillow turns "RGB;16B" into RGB silently.
        stored = str(picture.tile[0][3]) if picture.tile else ""
        if picture.mode not in USUAL_MODES:
            return f"mode {picture.mode}"
        if ";16" in stored:
            return "16 bits a level"
        if "transparency" in picture.info:
            return f"mode {picture.mode} with transparency"
    return f"{frames} frames, of which only the first is used" if frames > 1 else None


class Digests:
    """The digests of N files in 16 bytes each, for finding equal files in little memory."""

    def __init__(self, count: int) -> None:
        """Start without any digest."""
        self.rows = np.zeros((count, DIGEST_BYTES), np.uint8)
        self.known = np.zeros(count, bool)

    def keep(self, index: int, digest: bytes) -> None:
        """Record one digest; an empty one marks a file that equals no other."""
        if digest:
            self.rows[index], self.known[index] = np.frombuffer(digest, np.uint8), True

    def find_duplicates(self) -> dict[int, int]:
        """Map each duplicate to the first file equal to it, in order."""
        positions = np.flatnonzero(self.known)
        halves = self.rows[positions].view(np.uint64)
        order = np.lexsort(halves.T)  # stable: the first of equal ones stays first
        repeats = np.zeros(len(order), bool)
        repeats[1:] = (halves[order[1:]] == halves[order[:-1]]).all(axis=1)
        first = np.maximum.accumulate(np.where(repeats, 0, np.arange(len(order))))
        later, earlier = positions[order[repeats]], positions[order[first[repeats]]]
        return dict(sorted(zip(later.tolist(), earlier.tolist(), strict=True)))
