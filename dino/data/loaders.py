"""The two loaders: shuffled crops for training, one view of each image in order for evaluation.

Shapes: B images a device and step, C channels, S side.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dino.data.datasets import CropDataset, LabelledBatch, RandomViewDataset, Share, ViewDataset
from dino.data.sources import ImageSource
from dino.errors import DataError

logger = logging.getLogger(__name__)

TOGETHER = 16  # items that travel at once where they are not stacked


class EpochBatches(Sampler):
    """The indices of every batch: one permutation an epoch, from (seed, epoch) alone; short rests are dropped.

    Batch t of one process with batch size 2b holds the same images as batch t of two processes with b each.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int, share: Share) -> None:
        """Plan batches of `batch_size` for this process's share of `count` images."""
        self.count, self.batch_size, self.seed, self.share = count, batch_size, seed, share
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.count // (self.batch_size * self.share.world)

    def begin(self, epoch: int, start: int = 0) -> None:
        """Let the next pass be `epoch`, from batch `start` on."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (epoch, index)."""
        key = np.random.SeedSequence((self.seed, self.epoch), spawn_key=(0,))  # no image's own stream
        order = np.random.default_rng(key).permutation(self.count)
        mine = order[self.share.rank :: self.share.world].tolist()
        for batch in range(self.start, len(self)):
            yield [(self.epoch, index) for index in mine[batch * self.batch_size : (batch + 1) * self.batch_size]]


class TrainLoader:
    """Batches of crops or random views, epoch by epoch, from any position."""

    def __init__(self, dataset: CropDataset | RandomViewDataset, batches: EpochBatches, **settings: Any) -> None:
        """Wrap torch's loader; `settings` are its keyword arguments."""
        self.batches = batches
        self.loader = DataLoader(dataset, batch_sampler=batches, collate_fn=_collate, **settings)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.batches)

    def read(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches (`Crops` or `LabelledBatch`) of `epoch` from `start` on, each field with B in front.

        Raises:
            DataError: An image cannot be decoded, or a loader process died.
        """
        self.batches.begin(epoch, start)
        yield from _checked(self.loader)


def build_train_loader(
    dataset: CropDataset | RandomViewDataset,
    *,
    batch_size: int,
    share: Share,
    workers: int,
    pin_memory: bool,
    start: str | None = None,
) -> TrainLoader:
    """Build the training loader.

    Raises:
        DataError: Fewer images than one global batch.
    """
    check_count(dataset.source, batch_size * share.world)
    batches = EpochBatches(len(dataset.source), batch_size, seed=dataset.seed, share=share)
    return TrainLoader(dataset, batches, **_settings(workers, pin_memory, start), persistent_workers=workers > 0)


def check_count(source: ImageSource, global_batch: int) -> None:
    """Refuse a source that cannot fill one batch of all processes.

    Raises:
        DataError: With both numbers.
    """
    if len(source) < global_batch:
        raise DataError(
            f"{source.root} holds {len(source)} images, less than one global batch of {global_batch}; "
            "lower --batch_size_per_device (or --accumulate_steps)"
        )


def read_views(
    dataset: ViewDataset, *, batch_size: int, workers: int, pin_memory: bool, start: str | None = None
) -> Iterator[LabelledBatch]:
    """Yield every image of the dataset once, in order.

    Raises:
        DataError: An image cannot be decoded, or a loader process died.
    """
    settings = _settings(workers, pin_memory, start)
    batches = list(dataset.plan(batch_size))
    yield from _checked(DataLoader(dataset, batch_sampler=batches, collate_fn=_collate, **settings))


def read_items(dataset: Dataset, *, workers: int) -> Iterator[Any]:
    """Yield whatever a dataset makes of each of its items, in order.

    Raises:
        DataError: A loader process died.
    """
    for items in _checked(DataLoader(dataset, batch_size=TOGETHER, collate_fn=list, **_settings(workers, False, None))):
        yield from items


def choose_workers(asked: int, *, explicit: bool, processes_here: int = 1) -> int:
    """Loader processes: what the user asked for, or the default cut to the cores this process can count on."""
    return asked if explicit else min(asked, max(1, len(os.sched_getaffinity(0)) // processes_here))


def _settings(workers: int, pin_memory: bool, start: str | None) -> dict[str, Any]:
    context = multiprocessing.get_context(start) if workers else None
    if start == "forkserver" and context is not None:
        context.set_forkserver_preload(["__main__", __name__])  # torch is imported once, not by every loader
    return {
        "num_workers": workers,
        "pin_memory": pin_memory,
        "worker_init_fn": _outlive_signals,
        "multiprocessing_context": context,
    }


def _outlive_signals(_worker: int) -> None:
    """A signal to the whole job must not take the loaders away before the run has saved; the parent's own may."""
    for name in (signal.SIGUSR1, signal.SIGINT):
        signal.signal(name, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    # Not os.getppid(), as torch asks it: that may be the server that forked this loader, and it outlives a killed run.
    parent = multiprocessing.parent_process()
    if parent is not None:
        for end in (_end_when_told, _end_when_alone):
            threading.Thread(target=end, args=(parent,), daemon=True).start()


def _end_when_told(parent: BaseProcess) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
        pass
    os._exit(0)


def _end_when_alone(parent: BaseProcess) -> None:
    parent.join()
    os._exit(0)


def _collate(items: Sequence[Any]) -> Any:
    """Stack samples; an error travels whole, because a raised one would arrive as the worker's traceback."""
    return next((item for item in items if isinstance(item, DataError)), None) or default_collate(list(items))


def _checked(loader: DataLoader) -> Iterator[Any]:
    try:
        batches = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # torch would raise wherever the main thread happens to be; left alone it notices a dead worker right here.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for batch in batches:
            if isinstance(batch, DataError):
                raise DataError(str(batch))  # a new one: raising the batch itself would tie this frame to it
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"a loader process died ({reason}); is memory short? try fewer --num_workers") from error
