"""The two loaders: shuffled crops for training, and one view per image in order for evaluation.

Shapes: B images per device and step, C channels, S side.
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
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from dino.data.ahead import AnnouncedBatches, AnnouncedDataset
from dino.data.datasets import CropDataset, LabelledBatch, RandomViewDataset, Share, ViewDataset
from dino.data.epoch_batches import EpochBatches
from dino.data.loader_failures import explain
from dino.data.native import choose_cut
from dino.data.start_checks import (
    check_count,
    check_levels,
    check_shared_memory,
    warn_of_row_groups,
)
from dino.data.worker_signals import end_surely, holding_signals, outlive_signals
from dino.errors import DataError

logger = logging.getLogger(__name__)

USUAL_WORKERS = 10  # per device, as the reference
TOGETHER = 16  # items sent at once if they are not stacked
# Batches per worker, ready or in progress. More cost memory and cannot offset a lack of cores.
PREFETCH = 2
FILES_OF_BATCH = 8  # tensors of one batch, each an open file in transit, with some to spare
OTHER_FILES = 512  # everything else a run has open: pipes, logs, sockets, libraries
# Quota and period of a container (cgroup v2), in microseconds.
CPU_SHARE = Path("/sys/fs/cgroup/cpu.max")

Item = TypeVar("Item")


class TrainLoader:
    """Batches of crops or random views, epoch by epoch, starting at any position."""

    def __init__(
        self, dataset: CropDataset | RandomViewDataset, batches: EpochBatches, **settings: Any
    ) -> None:
        """Wrap torch's loader; `settings` are its keyword arguments."""
        self.batches = batches
        self.workers: int = settings["num_workers"]
        self.loader = _build(dataset, batches, settings)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.batches)

    def read(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """Yield the batches (`Crops` or `LabelledBatch`, leading B) of `epoch` from `start` on.

        Raises:
            DataError: An image cannot be decoded, or a loader process died.
        """
        self.batches.begin(epoch, start)
        pieces = _checked(self.loader)
        further = -(-self.batches.batch_size // self.batches.piece) - 1  # pieces after the first
        for first in pieces:
            yield _join([first, *itertools.islice(pieces, further)]) if further else first


def build_train_loader(
    dataset: CropDataset | RandomViewDataset,
    *,
    batch_size: int,
    share: Share,
    workers: int,
    pin_memory: bool | str,
    start: str | None = None,
    piece: int | None = None,
    processes_here: int = 1,
) -> TrainLoader:
    """Build the training loader; with `piece`, workers send that many images at a time.

    Raises:
        DataError: There are fewer images than one global batch, they need `pixel_range`, or the
            shared memory is too small for the batches of `processes_here` processes.
    """
    check_count(dataset.source, batch_size * share.world_size)
    check_levels(dataset.source)
    warn_of_row_groups(dataset.source)
    if workers:
        batches_here = processes_here * workers * PREFETCH
        check_shared_memory(dataset, batch_size=piece or batch_size, batches=batches_here)
    if isinstance(dataset, CropDataset):  # here, so that no loader process compiles
        dataset.cut = choose_cut()
    batches = EpochBatches(
        len(dataset.source), batch_size, seed=dataset.seed, share=share, piece=piece
    )
    return TrainLoader(
        dataset, batches, **_settings(workers, pin_memory, start), persistent_workers=workers > 0
    )


def read_views(
    dataset: ViewDataset,
    *,
    batch_size: int,
    workers: int,
    pin_memory: bool | str,
    start: str | None = None,
    processes_here: int = 1,
) -> Iterator[LabelledBatch]:
    """Yield every image of the dataset once, in order.

    Raises:
        DataError: An image cannot be decoded, a loader process died, or as for training.
    """
    check_levels(dataset.source)
    settings = _settings(workers, pin_memory, start)
    batches = list(dataset.plan(batch_size))
    if workers:
        check_shared_memory(
            dataset,
            batch_size=max(map(len, batches), default=0),
            batches=processes_here * min(workers * PREFETCH, len(batches)),
        )
    yield from _checked(_build(dataset, batches, settings))


def read_items(dataset: Dataset[Item], *, workers: int, start: str | None = None) -> Iterator[Item]:
    """Yield a dataset's items in order; `start` is the start method of its loader processes.

    Raises:
        DataError: A loader process died.
    """
    for items in _checked(
        DataLoader(
            dataset, batch_size=TOGETHER, collate_fn=list, **_settings(workers, False, start)
        )
    ):
        yield from items


def choose_workers(
    asked: int | None, *, usual: int = USUAL_WORKERS, processes_here: int = 1, reserved: int = 0
) -> int:
    """Number of loader processes: `asked`, else `usual` capped by the cores of this process.

    Args:
        asked: An explicit number, or None.
        usual: The number to use if there are enough cores.
        processes_here: Processes that share the cores of this host.
        reserved: Cores that each of those keeps busy itself.
    """
    return (
        asked
        if asked is not None
        else min(usual, max(1, count_cores() // processes_here - reserved))
    )


def count_cores() -> int:
    """Cores this process may use: its CPU affinity, capped by the container's CPU quota."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = CPU_SHARE.read_text(encoding="ascii").split()
        return max(1, min(bound, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota: the file is missing or says max
        return bound


def choose_sharing(workers: int) -> str:
    """How workers send batches: as open files if possible, because those need no cleanup.

    Raises the limit of open files of this process if necessary and allowed.
    """
    needed = OTHER_FILES + workers * PREFETCH * FILES_OF_BATCH
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return "file_descriptor"
    if hard != resource.RLIM_INFINITY and needed > hard:
        return "file_system"
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return "file_descriptor"


def _build(dataset: Any, batches: Any, settings: dict[str, Any]) -> DataLoader[Any]:
    """Build torch's loader; images behind URLs are announced to its processes."""
    members = dataset.source.members
    if members and members.is_far:
        dataset = AnnouncedDataset(dataset)
        batches = AnnouncedBatches(batches, settings["num_workers"])
    return DataLoader(dataset, batch_sampler=batches, collate_fn=_collate, **settings)


def _settings(workers: int, pin_memory: bool | str, start: str | None) -> dict[str, Any]:
    pinning = {"pin_memory": bool(pin_memory)} | (
        {"pin_memory_device": pin_memory} if isinstance(pin_memory, str) else {}
    )
    if not workers:
        return {"num_workers": 0, **pinning}
    context = multiprocessing.get_context(start)
    if context.get_start_method() != "fork":
        resource_tracker.ensure_running()  # its start would end `holding_signals`
    if context.get_start_method() == "forkserver":
        # torch is then imported once rather than by every worker.
        context.set_forkserver_preload(["__main__", __name__])
    return {
        "num_workers": workers,
        **pinning,
        "prefetch_factor": PREFETCH,
        "worker_init_fn": functools.partial(_begin_worker, choose_sharing(workers)),
        "multiprocessing_context": context,
    }


@contextlib.contextmanager
def _without_threads_of_opencv() -> Iterator[None]:
    """Stop OpenCV's threads around a fork; a child without them would wait for them forever."""
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
    """Use one thread, because there is one worker per core; torch limits its own threads."""
    share: Callable[[str], None] = torch.multiprocessing.set_sharing_strategy  # untyped in torch
    # The sender's strategy counts, and children of a fork server do not inherit it.
    share(sharing)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)
    outlive_signals()


def _collate(items: Sequence[Any]) -> Any:
    """Stack samples; return an error as is, since raising it here would only give a traceback."""
    error = next((item for item in items if isinstance(item, DataError)), None)
    return error or default_collate(list(items))


def _join(pieces: Sequence[Any]) -> Any:
    return type(pieces[0])(*(torch.cat(fields) for fields in zip(*pieces, strict=True)))


@contextlib.contextmanager
def _keeping_child_handler() -> Iterator[None]:
    """Restore the SIGCHLD handler that torch's loader replaces; only the main thread may."""
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
    batches: Iterator[Any] = iter(())
    try:
        # Workers that persist are there already, and what they are doing may take long.
        starts = loader.num_workers > 0 and getattr(loader, "_iterator", None) is None
        with _without_threads_of_opencv(), holding_signals(starts):
            batches = iter(loader)
            end_surely(batches)
        if threading.current_thread() is threading.main_thread():
            # torch's handler would raise anywhere in the main thread. Without it, a dead worker is
            # noticed right here.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for batch in batches:
            if isinstance(batch, DataError):
                # A new error: raising the received one would tie this frame to it.
                raise DataError(str(batch))
            yield batch
    except Exception as error:  # noqa: BLE001 - raised again, explained or not
        # No variable for it, which would tie this frame, and so the loader, to the error.
        raise explain(error, getattr(batches, "_workers", ()))  # noqa: B904 - it sets the cause
