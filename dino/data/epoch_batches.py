"""The order of training images: which indices form which batch of which epoch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from dino.data.datasets import Share


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The indices of every batch: one permutation per epoch, derived from (seed, epoch) alone.

    Incomplete last batches are dropped. Batch t of one process with batch size 2b holds the same
    images as batch t of two processes with batch size b each.
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int, share: Share, piece: int | None = None
    ) -> None:
        """Plan batches of this process's share of `count` images, each in pieces of `piece`."""
        self.count, self.batch_size, self.seed, self.share = count, batch_size, seed, share
        self.piece = piece or batch_size
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.count // (self.batch_size * self.share.world_size)

    def begin(self, epoch: int, start: int = 0) -> None:
        """Set the next pass to `epoch`, starting at batch `start`."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield one list of (epoch, index) per piece."""
        # The spawn key keeps this stream apart from those of the images.
        seed = np.random.SeedSequence((self.seed, self.epoch), spawn_key=(0,))
        order = np.random.default_rng(seed).permutation(self.count)
        own = order[self.share.rank :: self.share.world_size].tolist()
        for batch in range(self.start, len(self)):
            indices = own[batch * self.batch_size : (batch + 1) * self.batch_size]
            for first in range(0, len(indices), self.piece):
                yield [(self.epoch, index) for index in indices[first : first + self.piece]]
