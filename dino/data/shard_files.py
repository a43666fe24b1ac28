"""A tar file as the reader of shards sees it, and one on a disk."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from dino.data.index import Stamp, read_stamp
from dino.errors import DataError


class Shard(Protocol):
    """A tar file; `str` is its name in errors."""

    is_far: bool  # whether each read takes the time of a network

    @property
    def place(self) -> str:
        """What tells it from all other shards."""

    def stamp(self) -> Stamp:
        """What tells that it has changed; an error if it cannot be read."""

    def open(self, stamp: Stamp) -> BinaryIO:
        """Open it for scanning, if it has this stamp."""

    def read(self, offset: int, size: int, stamp: Stamp) -> bytes:
        """Read some bytes; an error if it does not have this stamp."""


@dataclass(frozen=True)
class LocalShard:
    """A tar file on a disk."""

    path: Path
    is_far = False

    def __str__(self) -> str:
        """Its path."""
        return str(self.path)

    @property
    def place(self) -> str:
        """Its absolute path."""
        return os.path.abspath(self.path)

    def stamp(self) -> Stamp:
        """Its size and times of change.

        Raises:
            DataError: It is missing or no file.
        """
        try:
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                raise DataError(f"{self} is no file")  # a pipe may never end
            return read_stamp(self.path)
        except OSError as error:
            raise DataError(f"{self} cannot be read: {error}") from error

    def open(self, _stamp: Stamp) -> BinaryIO:
        """Open it for scanning; its stamp is compared when images are read."""
        return self.path.open("rb")

    def read(self, offset: int, size: int, stamp: Stamp) -> bytes:
        """Read `size` bytes from byte `offset` on, with one open and one read.

        Raises:
            DataError: The shard has changed since the run began.
            OSError: The shard cannot be read.
        """
        with self.path.open("rb", buffering=0) as file:
            content = os.pread(file.fileno(), size, offset)
        if len(content) < size or read_stamp(self.path) != stamp:
            raise DataError(f"{self} has changed since the run began", remedy="restart the run")
        return content
