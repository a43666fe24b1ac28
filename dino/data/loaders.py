"""The two loaders: shuffled crops for training, one view of each image in order for evaluation.

Shapes: B images a device and step, C channels, S side.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dino.data.crops import CropRecipe, Crops, build_rng, cut_crops
from dino.data.decode import read_image
from dino.data.sources import ImageSource
from dino.errors import DataError

logger = logging.getLogger(__name__)

Shape = tuple[int, int]  # H, W


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which part of every batch this process loads."""

    rank: int = 0
    world: int = 1


class CropDataset(Dataset):
    """(epoch, index) -> the crops of one image, or the error that stops the run."""

    def __init__(self, source: ImageSource, recipe: CropRecipe, *, seed: int, skip_bad: bool) -> None:
        """Keep the list and the recipe; nothing is read yet."""
        self.source = source
        self.recipe = recipe
        self.seed = seed
        self.skip_bad = skip_bad

    def __getitem__(self, key: tuple[int, int]) -> Crops | DataError:
        """Crops of image `index` in `epoch`; an unreadable image gives way to the next one where that is allowed."""
        epoch, index = key
        rng = build_rng(self.seed, epoch, index)
        for replaced in range(len(self.source)):
            path = self.source.path((index + replaced) % len(self.source))
            try:
                return cut_crops(read_image(path, self.recipe.channels), self.recipe, rng, replaced)
            except DataError as error:
                if not self.skip_bad:
                    return DataError(f"{error}; --on_bad_image skip would replace it")
                logger.warning("%s; skipped", error)
        return DataError(f"none of the {len(self.source)} images can be read")


class LabelledBatch(NamedTuple):
    """Views (B, C, H, W) uint8, their labels (B,) and their indices in the source (B,), int64."""

    pixels: Tensor
    labels: Tensor
    indices: Tensor


class RandomViewDataset(Dataset):
    """(epoch, index) -> one random view of an image with label and index, or the error that stops the run."""

    def __init__(
        self, source: ImageSource, cut: Callable[[Tensor, np.random.Generator], Tensor], *, channels: int, seed: int
    ) -> None:
        """Keep the list; nothing is read yet.

        Args:
            source: The images.
            cut: (C, H, W) uint8 of any size and the image's generator to the view; it travels to the loader processes.
            channels: C.
            seed: Of all views.
        """
        self.source, self.cut, self.channels, self.seed = source, cut, channels, seed

    def __getitem__(self, key: tuple[int, int]) -> LabelledBatch | DataError:
        """The view of image `index` in `epoch`, without B."""
        epoch, index = key
        rng = build_rng(self.seed, epoch, index)
        return _read_view(self.source, index, lambda image: self.cut(image, rng), self.channels)


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


class ViewDataset(Dataset):
    """Place in this process's share -> one view of an image with label and index."""

    def __init__(
        self,
        source: ImageSource,
        cut: Callable[[Tensor], Tensor],
        *,
        channels: int,
        share: Share,
        shapes: Sequence[Shape] | None = None,
    ) -> None:
        """Keep the list; rank r of w reads images r, r + w, r + 2w, ...

        Args:
            source: The images.
            cut: (C, H, W) uint8 of any size to the view, (C, H, W) uint8; it travels to the loader processes.
            channels: C.
            share: This process's.
            shapes: (H, W) of each image's view, where they differ; a batch then ends where the shape changes.
        """
        self.source, self.cut, self.channels, self.shapes = source, cut, channels, shapes
        self.indices = range(share.rank, len(source), share.world)

    def __len__(self) -> int:
        """Images of this process."""
        return len(self.indices)

    def __getitem__(self, place: int) -> LabelledBatch | DataError:
        """One image, without B, or the error that stops the run."""
        return _read_view(self.source, self.indices[place], self.cut, self.channels)

    def plan(self, batch_size: int) -> Iterator[list[int]]:
        """Yield the places of each batch: in order, at most so many, all of one shape."""
        shapes = self.shapes
        for _, run in itertools.groupby(range(len(self)), lambda place: shapes and shapes[self.indices[place]]):
            places = list(run)
            yield from (places[start : start + batch_size] for start in range(0, len(places), batch_size))


def _read_view(
    source: ImageSource, index: int, cut: Callable[[Tensor], Tensor], channels: int
) -> LabelledBatch | DataError:
    label = -1 if source.labels is None else source.labels[index]
    try:
        pixels = cut(read_image(source.path(index), channels, source.box(index)))
    except DataError as error:
        return error
    return LabelledBatch(pixels, torch.tensor(label), torch.tensor(index))


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
