"""Extract the features of a frozen backbone in data set order, on every process, each exactly once.

Shapes: B images, C channels, S side, N images of a data set, D width.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dino import checkpoint
from dino.data.config import DataConfig
from dino.data.crops import center_crop
from dino.data.datasets import Shape, Share, ViewDataset
from dino.data.image_source import ImageSource
from dino.data.loaders import choose_workers, read_views
from dino.data.photometric import build_normalization
from dino.errors import CheckpointError, DataError
from dino.runtime.agreement import check_images
from dino.runtime.context import Run
from dino.runtime.progress import Progress
from dino.stored import check_values, is_finite, name_numbers
from dino.weights.load import TrainedBackbone

PROGRESS_EVERY = 20  # batches between two progress lines
MOST_CLASSES = 1_000_000  # of a file of labels: a vote has one number per class
GATHER_ROWS = 16384  # rows a process sends at a time


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features (N, D) float32 and labels (N,) int64 of a data set."""

    features: Tensor
    labels: Tensor


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How images are read and where features are kept.

    Attributes:
        batch_size: B per process.
        workers: Loader processes.
        keep_on_device: Keep features on the device instead of in host memory.
        max_batches: Stop after this many batches, for a quick look; None for all.
    """

    batch_size: int
    workers: int
    keep_on_device: bool = True
    max_batches: int | None = None


def build_loader_config(
    data: DataConfig, run: Run, *, keep_on_device: bool, max_batches: int | None = None
) -> LoaderConfig:
    """Build the loader settings for a run."""
    workers = choose_workers(
        data.num_workers,
        processes_here=run.processes.local_world_size,
        reserved=run.device.reserved_cores,
    )
    return LoaderConfig(
        batch_size=data.batch_size_per_device,
        workers=workers,
        keep_on_device=keep_on_device,
        max_batches=max_batches,
    )


def share_of(run: Run) -> Share:
    """Return the share of the images that this process reads."""
    return Share(rank=run.processes.rank, world_size=run.processes.world_size)


def extract_features(
    backbone: TrainedBackbone,
    source: ImageSource,
    run: Run,
    reading: LoaderConfig,
    *,
    cut: Callable[[Tensor], Tensor] | None = None,
    shapes: Sequence[Shape] | None = None,
    normalize: bool = True,
) -> Features:
    """Run a backbone over one view of each image of a data set.

    Args:
        backbone: Its module maps (B, C, H, W) to (B, D): the backbone itself, or a descriptor.
        source: The images.
        run: Device and processes. Each process reads its share.
        reading: Batch size, loader processes, and where to keep features.
        cut: Turns an image (C, H, W) uint8 into its view. The default is the center crop.
        shapes: (H, W) of each image's view, if `cut` returns several shapes. Neighbors of one shape
            share batches, and a device that compiles needs one graph for each run of one shape, so
            sort the source by shape.
        normalize: Scale features to length 1.

    Returns:
        Features and labels in the order of `source`, identical on every process.

    Raises:
        DataError: An image cannot be decoded.
    """
    processes = run.processes
    cut = cut or functools.partial(center_crop, size=backbone.image_size)
    source = source.ranged(backbone.pixel_range)
    dataset = ViewDataset(
        source, cut, channels=backbone.in_chans, share=share_of(run), shapes=shapes
    )
    processes.phase = f"features of {source.root.name}"
    check_images(processes, source, f"images of {source.root.name}")
    progress = Progress(len(source), processes.phase, shown=processes.is_rank_zero)
    rows, labels, done = [], [], 0
    for features, batch_labels in _infer(backbone, dataset, run, reading):
        features = F.normalize(features, dim=-1) if normalize else features
        rows.append(features if reading.keep_on_device else features.cpu())
        labels.append(batch_labels)
        done += len(batch_labels)
        if done == len(dataset) or len(rows) % PROGRESS_EVERY == 0:
            progress.advance(min(done * processes.world_size, len(source)))
    progress.close()
    return _gather(torch.cat(rows), torch.cat(labels), len(source), run, reading)


def stream_features(
    backbone: TrainedBackbone, source: ImageSource, run: Run, reading: LoaderConfig
) -> Iterator[Tensor]:
    """Run a backbone over the center crop of each image, and yield its rows in bounded memory.

    Args:
        backbone: Its module maps (B, C, H, W) to one tensor (B, ...).
        source: The images.
        run: Device and processes. Each process reads its share.
        reading: Batch size and loader processes.

    Yields:
        Rows (n, ...) float32 in host memory: the next n images of all processes together, in the
        order of `source`, identical on every process.

    Raises:
        DataError: An image cannot be decoded.
    """
    processes, done, source = run.processes, 0, source.ranged(backbone.pixel_range)
    cut = functools.partial(center_crop, size=backbone.image_size)
    batches = _infer(
        backbone,
        ViewDataset(source, cut, channels=backbone.in_chans, share=share_of(run)),
        run,
        reading,
    )
    processes.phase = f"features of {source.root.name}"
    check_images(processes, source, f"images of {source.root.name}")
    progress = Progress(len(source), processes.phase, shown=processes.is_rank_zero)
    rows = torch.empty(0)
    for turn in range(-(-len(source) // (reading.batch_size * processes.world_size))):
        # A process whose share is one image shorter may have no rows in the last turn.
        rows, _ = next(batches, (rows[:0], None))
        count = min(reading.batch_size * processes.world_size, len(source) - done)
        yield processes.gather_rows(rows, count).cpu()
        done += count
        if done == len(source) or (turn + 1) % PROGRESS_EVERY == 0:
            progress.advance(done)
    progress.close()


def _infer(
    backbone: TrainedBackbone, dataset: ViewDataset, run: Run, reading: LoaderConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    infer = run.device.compile_eval(backbone.module)
    normalization = build_normalization(backbone.in_chans, backbone.normalization)
    batches = read_views(
        dataset,
        batch_size=reading.batch_size,
        workers=reading.workers,
        pin_memory=run.device.pins_memory,
        start=run.device.loader_start,
        processes_here=run.processes.local_world_size,
    )
    if not len(dataset):  # fewer images than processes: yield zero rows of the right width
        side = backbone.image_size
        blank = dataset.cut(torch.zeros(backbone.in_chans, side, side, dtype=torch.uint8))
        features = infer(normalization(run.device.to_device(blank[None]))).float()
        yield features[:0], torch.empty(0, dtype=torch.int64)
    shape, full = None, 0
    for batch in itertools.islice(batches, reading.max_batches):
        # A smaller last batch would need another graph on devices that compile, so it is padded.
        if batch.pixels.shape[1:] != shape:
            shape, full = batch.pixels.shape[1:], len(batch.labels)
        missing = full - len(batch.labels)
        pixels = batch.pixels
        if missing:
            pixels = F.pad(pixels, (*(0, 0) * 3, 0, missing))  # the copy is not pinned
        features = infer(normalization(run.device.to_device(pixels))).float()
        yield features[: len(batch.labels)] if missing else features, batch.labels


def _gather(rows: Tensor, labels: Tensor, count: int, run: Run, reading: LoaderConfig) -> Features:
    """Join all processes' shares slice by slice, since the exchange goes through device memory."""
    world_size = run.processes.world_size
    if world_size == 1:
        return Features(features=rows, labels=labels)
    if reading.max_batches is not None:
        count = min(count, reading.max_batches * reading.batch_size * world_size)
    gathered_rows, gathered_labels = [], []
    for start in range(0, -(-count // world_size), GATHER_ROWS):
        total = min(count - start * world_size, GATHER_ROWS * world_size)
        stop = start + GATHER_ROWS
        joined = run.processes.gather_rows(run.device.to_device(rows[start:stop]), total)
        gathered_rows.append(joined if reading.keep_on_device else joined.cpu())
        gathered_labels.append(
            run.processes.gather_rows(run.device.to_device(labels[start:stop]), total).cpu()
        )
    return Features(features=torch.cat(gathered_rows), labels=torch.cat(gathered_labels))


def save_features(folder: Path, name: str, features: Features) -> None:
    """Write `NAMEfeat.pth` and `NAMElabels.pth`, as the original does, each atomically.

    Raises:
        CheckpointError: The folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"`dump_features` {folder} cannot be written to: {error}", value=folder
        ) from error
    checkpoint.save_file(folder / f"{name}feat.pth", features.features.cpu())
    checkpoint.save_file(folder / f"{name}labels.pth", features.labels.cpu())


def load_features(folder: Path, name: str) -> Features:
    """Read the files of `save_features` or of the original.

    Raises:
        DataError: A file is missing or damaged.
    """
    try:
        features = checkpoint.load_tensors(folder / f"{name}feat.pth")
        labels = checkpoint.load_tensors(folder / f"{name}labels.pth")
    except Exception as error:  # noqa: BLE001 - a damaged file can raise anything
        raise DataError(
            f"`load_features` {folder}: {name}feat.pth and {name}labels.pth cannot be read: "
            f"{error}",
            value=folder,
        ) from error
    dimensions = [isinstance(tensor, Tensor) and tensor.ndim for tensor in (features, labels)]
    if dimensions != [2, 1] or len(features) != len(labels) or not len(labels):
        raise DataError(
            f"`load_features` {folder}: {name}feat.pth must hold (N, D) features and "
            f"{name}labels.pth N labels",
            value=folder,
        )
    try:
        check_values({f"{name}feat.pth": features, f"{name}labels.pth": labels}, folder)
    except CheckpointError as error:
        raise DataError(f"`load_features` {error}", value=folder) from error
    _check_numbers(features, labels, f"`load_features` {folder}: {name}")
    return Features(features=features.detach(), labels=labels.detach().long())


def _check_numbers(features: Tensor, labels: Tensor, what: str) -> None:
    """Check dense features (N, D) and labels (N) of a file.

    Raises:
        DataError: They are not finite numbers, or not numbers of classes.
    """
    kinds = name_numbers(features), name_numbers(labels)
    if kinds != ("floating-point numbers", "integers"):
        raise DataError(
            f"{what}feat.pth must hold floating-point numbers and {what.split()[-1]}labels.pth "
            f"integers (got {' and '.join(kinds)})"
        )
    if any(t.numel() * t.element_size() > t.untyped_storage().nbytes() for t in (features, labels)):
        raise DataError(f"{what}feat.pth and its labels must be stored whole, not expanded")
    if not is_finite(features):
        rows = (~features.isfinite().all(dim=1)).nonzero()[:, 0].tolist()
        raise DataError(
            f"{what}feat.pth holds NaN or infinite numbers in {len(rows)} of {len(features)} rows, "
            f"the first is row {rows[0]}"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= MOST_CLASSES:
        raise DataError(
            f"{what}labels.pth must hold class numbers from 0 to {MOST_CLASSES - 1} "
            f"(got {least if least < 0 else most})"
        )
