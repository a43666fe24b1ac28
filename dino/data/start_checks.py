"""What is checked before a loader reads its first batch."""

from __future__ import annotations

import logging
import os
from typing import Protocol

from dino.data.decode import EIGHT_BITS
from dino.data.image_source import ImageSource
from dino.data.row_groups import Rows
from dino.errors import DataError

logger = logging.getLogger(__name__)

LOOK = 256  # images, evenly spaced, whose levels are looked at
TWELVE_BITS = 4095  # the highest level of many cameras and scanners, in files of 16 bits
SHARED_MEMORY = "/dev/shm"  # where loader processes put their batches
MEGABYTE = 1e6
SLOW = 4e6  # bytes to decode for one image: as long as half of its crops take (docs/data.md)
MORE_SHARED_MEMORY = (
    "start the container with --ipc=host or a larger --shm-size, or lower `num_workers`"
)


class Sized(Protocol):
    """A data set whose items have a known size."""

    def count_bytes(self) -> int:
        """Bytes of the tensors of one item."""


def check_count(source: ImageSource, global_batch: int) -> None:
    """Reject a source that cannot fill one global batch.

    Raises:
        DataError: The text includes both numbers.
    """
    if len(source) < global_batch:
        raise DataError(
            f"{source.root} holds {len(source)} images,"
            f" less than one global batch of {global_batch}",
            remedy="lower `batch_size_per_device` (or `accumulate_steps`)",
        )


def check_levels(source: ImageSource) -> None:
    """Reject 16-bit pictures that use 12 bits: their upper bytes are almost black.

    Raises:
        DataError: No 16-bit picture among those looked at has a level above 4,095.
    """
    if source.pixel_range is not None:
        return
    some, highest = source.limited(LOOK), -1
    some.expect(
        [index for index, name in enumerate(some.names) if not name.lower().endswith(EIGHT_BITS)]
    )
    for index in range(len(some)):
        level = some.read_highest(index)
        highest = highest if level is None else max(highest, level)
        if highest > TWELVE_BITS:
            return
    if highest >= 0:
        raise DataError(
            f"{source.root}: no 16-bit image has a level above {highest}, so that all would be"
            " almost black",
            remedy="set `pixel_range` 0,4095 for 12 bits (or 0,65535 if they are to be that dark)",
        )


def warn_of_row_groups(source: ImageSource) -> None:
    """Say that images in random order are slow to read from large row groups."""
    if isinstance(source.members, Rows) and source.members.cost > SLOW:
        logger.info(
            "slow to read in random order: for each image, %.0f MB of its Parquet file are decoded;"
            " pack the images once (dino pack) to read each by itself",
            source.members.cost / MEGABYTE,
        )


def check_shared_memory(dataset: Sized, *, batch_size: int, batches: int) -> None:
    """Reject loader processes whose batches do not fit into the free shared memory.

    Without this check, the system ends a loader process at some later time (SIGBUS).

    Args:
        dataset: What the loader processes read.
        batch_size: Items that a loader process sends at a time.
        batches: How many of those are ready or in progress on this machine.

    Raises:
        DataError: The text includes both sizes and the ways out.
    """
    try:
        status = os.statvfs(SHARED_MEMORY)
    except OSError:  # a system that shares memory in another way
        return
    free, size = status.f_bavail * status.f_frsize, batch_size * dataset.count_bytes()
    if batches * size > free:
        raise DataError(
            f"{SHARED_MEMORY} has {free / MEGABYTE:.0f} MB free, but {batches} batches of"
            f" {size / MEGABYTE:.3g} MB from the loader processes need"
            f" {batches * size / MEGABYTE:.0f} MB",
            remedy=MORE_SHARED_MEMORY,
        )
