"""Mean and standard deviation of the pixels of a data set, measured on some of its images."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dino.data.image_source import ImageSource
from dino.data.photometric import Normalization
from dino.data.remote_requests import Unreachable
from dino.errors import DataError

SAMPLE = 1000  # images, evenly spaced over the list
DIGITS = 4  # a decoder that rounds otherwise must not make another run
LEVELS = 256


def measure_pixels(source: ImageSource, channels: int, *, skip_bad: bool = False) -> Normalization:
    """Measure the mean and the standard deviation of each channel, of levels scaled to [0, 1].

    Every image counts equally, whatever its size.

    Args:
        source: The images.
        channels: C.
        skip_bad: Leave out images that cannot be read, instead of failing.

    Raises:
        DataError: An image cannot be read, or a channel has the same level everywhere.
    """
    some = source.limited(SAMPLE)
    shares = list(_read_shares(some, channels, skip_bad))
    if not shares:
        raise DataError(f"{source.root}: none of {len(some)} images can be read")
    levels = torch.arange(LEVELS, dtype=torch.float64) / (LEVELS - 1)
    share = torch.stack(shares).mean(dim=0)  # (C, 256)
    mean = share @ levels
    std = (share * (levels - mean[:, None]) ** 2).sum(dim=1).sqrt()
    if not std.min() > 0:
        raise DataError(
            f"{source.root}: a channel has the same level in all images",
            remedy="give `std` as numbers, or leave it out",
        )
    return Normalization(mean=_round(mean), std=_round(std))


def _read_shares(source: ImageSource, channels: int, skip_bad: bool) -> Iterator[Tensor]:
    """Yield (C, 256) float64 of each image: the share of its pixels that have each level."""
    source.expect(range(len(source)))
    for index in range(len(source)):
        try:
            pixels = source.read(index, channels)
        except Unreachable:
            raise
        except DataError:
            if not skip_bad:
                raise
            continue
        counts = [torch.bincount(plane.flatten(), minlength=LEVELS) for plane in pixels]
        yield torch.stack(counts).double() / pixels[0].numel()


def _round(values: Tensor) -> tuple[float, ...]:
    return tuple(max(round(value, DIGITS), 10**-DIGITS) for value in values.tolist())
