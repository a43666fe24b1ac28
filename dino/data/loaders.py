"""The two loaders: shuffled crops for training, one view of each image in order for evaluation.

Shapes: B images a device and step, C channels, S side.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from dino.data.datasets import CropDataset, LabelledBatch, RandomViewDataset, Share, ViewDataset
from dino.data.image_source import ImageSource
from dino.errors import DataError

logger = logging.getLogger(__name__)

USUAL_WORKERS = 10  # the reference's, for each device
TOGETHER = 16  # items that travel at once where they are not stacked
PREFETCH = 2  # batches a loader process has ready or in work; more hides no lasting lack of cores, and costs memory
FILES_OF_BATCH = 8  # tensors of one batch, each an open file on its way, and some to spare
OTHER_FILES = 512  # whatever else a run has open: pipes, logs, sockets, libraries
CPU_SHARE = Path(
    "/sys/fs/cgroup/cpu.max"
)  # quota and period of a container (cgroup v2), in microseconds

Item = TypeVar("Item")


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The indices of every batch: one permutation an epoch, from (seed, epoch) alone; short rests are dropped.

    Batch t of one process with batch size 2b holds the same images as batch t of two processes with b each.
    """

    def __init__(
        self, count: int, batch_size: int, *, seed: int, share: Share, piece: int | None = None
    ) -> None:
        """Plan batches of `batch_size` for this process's share of `count` images, each in pieces of `piece`."""
        self.count, self.batch_size, self.seed, self.share = count, batch_size, seed, share
        self.piece = piece or batch_size
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.count // (self.batch_size * self.share.world_size)

    def begin(self, epoch: int, start: int = 0) -> None:
        """Let the next pass be `epoch`, from batch `start` on."""
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield lists of (epoch, index), one a piece."""
        key = np.random.SeedSequence(
            (self.seed, self.epoch), spawn_key=(0,)
        )  # no image's own stream
        order = np.random.default_rng(key).permutation(self.count)
        mine = order[self.share.rank :: self.share.world_size].tolist()
        for batch in range(self.start, len(self)):
            keys = [
                (self.epoch, index)
                for index in mine[batch * self.batch_size : (batch + 1) * self.batch_size]
            ]
            yield from (
                keys[first : first + self.piece] for first in range(0, len(keys), self.piece)
            )


class TrainLoader:
    """Batches of crops or random views, epoch by epoch, from any position."""

    def __init__(
        self, dataset: CropDataset | RandomViewDataset, batches: EpochBatches, **settings: Any
    ) -> None:
        """Wrap torch's loader; `settings` are its keyword arguments."""
        self.batches = batches
        self.workers: int = settings["num_workers"]
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
        pieces = _checked(self.loader)
        rest = -(-self.batches.batch_size // self.batches.piece) - 1
        for first in pieces:
            yield _join([first, *itertools.islice(pieces, rest)]) if rest else first


def build_train_loader(
    dataset: CropDataset | RandomViewDataset,
    *,
    batch_size: int,
    share: Share,
    workers: int,
    pin_memory: bool | str,
    start: str | None = None,
    piece: int | None = None,
) -> TrainLoader:
    """Build the training loader; with `piece`, loader processes hand over so many images at a time, not whole batches.

    Raises:
        DataError: Fewer images than one global batch.
    """
    check_count(dataset.source, batch_size * share.world_size)
    batches = EpochBatches(
        len(dataset.source), batch_size, seed=dataset.seed, share=share, piece=piece
    )
    return TrainLoader(
        dataset, batches, **_settings(workers, pin_memory, start), persistent_workers=workers > 0
    )


def check_count(source: ImageSource, global_batch: int) -> None:
    """Refuse a source that cannot fill one batch of all processes.

    Raises:
        DataError: With both numbers.
    """
    if len(source) < global_batch:
        raise DataError(
            f"{source.root} holds {len(source)} images, less than one global batch of {global_batch}",
            remedy="lower `batch_size_per_device` (or `accumulate_steps`)",
        )


def read_views(
    dataset: ViewDataset,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool | str,
    start: str | None = None,
) -> Iterator[LabelledBatch]:
    """Yield every image of the dataset once, in order.

    Raises:
        DataError: An image cannot be decoded, or a loader process died.
    """
    settings = _settings(workers, pin_memory, start)
    batches = list(dataset.plan(batch_size))
    yield from _checked(DataLoader(dataset, batch_sampler=batches, collate_fn=_collate, **settings))


def read_items(dataset: Dataset[Item], *, workers: int) -> Iterator[Item]:
    """Yield whatever a dataset makes of each of its items, in order.

    Raises:
        DataError: A loader process died.
    """
    for items in _checked(
        DataLoader(dataset, batch_size=TOGETHER, collate_fn=list, **_settings(workers, False, None))
    ):
        yield from items


def choose_workers(
    asked: int | None, *, usual: int = USUAL_WORKERS, processes_here: int = 1, reserved: int = 0
) -> int:
    """Loader processes: what is asked for, else the usual number, cut to the cores this process can count on.

    Args:
        asked: None for the usual number.
        usual: As many, where there are the cores.
        processes_here: Processes that share the cores of this host.
        reserved: Cores that each of them keeps busy itself.
    """
    return (
        asked
        if asked is not None
        else min(usual, max(1, count_cores() // processes_here - reserved))
    )


def count_cores() -> int:
    """Cores this process may use: those it is bound to, or fewer where its container has a share of their time."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_SHARE.read_text(encoding="ascii").split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such limit: the file is not there, or says max
        return bound


def choose_sharing(workers: int) -> str:
    """How batches come from loader processes: as open files, which need no cleaning up, while there may be enough.

    The number of files a process may have open is raised for that, as far as the system lets it.
    """
    needed = OTHER_FILES + workers * PREFETCH * FILES_OF_BATCH
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    if soft == unlimited or needed <= soft:
        return "file_descriptor"
    if hard != unlimited and needed > hard:
        return "file_system"
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return "file_descriptor"


def _settings(workers: int, pin_memory: bool | str, start: str | None) -> dict[str, Any]:
    pinning = {"pin_memory": bool(pin_memory)} | (
        {"pin_memory_device": pin_memory} if isinstance(pin_memory, str) else {}
    )
    if not workers:
        return {"num_workers": 0, **pinning}
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(
            ["__main__", __name__]
        )  # torch is imported once, not by every loader
    return {
        "num_workers": workers,
        **pinning,
        "prefetch_factor": PREFETCH,
        "worker_init_fn": functools.partial(_begin_worker, choose_sharing(workers)),
        "multiprocessing_context": context,
    }


@contextlib.contextmanager
def _without_threads_of_opencv() -> Iterator[None]:
    """Fork without OpenCV's threads: a child that has their pool and not the threads waits for them for ever."""
    library = sys.modules.get("cv2")
    before = library.getNumThreads() if library else 0
    if library:
        library.setNumThreads(1)
    try:
        yield
    finally:
        if library:
            library.setNumThreads(before)


def _begin_worker(sharing: str, _worker: int) -> None:
    """One thread each, since there is a process a core; torch's own loader has seen to torch's threads already."""
    share: Callable[[str], None] = (
        torch.multiprocessing.set_sharing_strategy
    )  # which torch leaves untyped
    share(sharing)  # the sender's counts, and a fork server's children forget it
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    _outlive_signals()


def _outlive_signals() -> None:
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
    return next((item for item in items if isinstance(item, DataError)), None) or default_collate(
        list(items)
    )


def _join(pieces: Sequence[Any]) -> Any:
    return type(pieces[0])(*(torch.cat(fields) for fields in zip(*pieces, strict=True)))


@contextlib.contextmanager
def _keeping_child_handler() -> Iterator[None]:
    """Put back what the program did about ended children, which torch's loader changes; in the main thread, as that."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread() and before is not None:
            signal.signal(signal.SIGCHLD, before)


def _checked(loader: DataLoader[Any]) -> Iterator[Any]:
    with _keeping_child_handler():
        yield from _read_batches(loader)


def _read_batches(loader: DataLoader[Any]) -> Iterator[Any]:
    try:
        with _without_threads_of_opencv():
            batches = iter(loader)
        if threading.current_thread() is threading.main_thread():
            # torch would raise wherever the main thread happens to be; left alone it notices a dead worker right here.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for batch in batches:
            if isinstance(batch, DataError):
                raise DataError(
                    str(batch)
                )  # a new one: raising the batch itself would tie this frame to it
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(
            f"a loader process died ({reason})", remedy="is memory short? try fewer `num_workers`"
        ) from error
