"""Segment clips from their first frame's labels: features, propagation, label maps on disk.

Shapes: B frames, C channels or labels, H W positions of the feature grid, D width.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dino.data.datasets import Share, ViewDataset
from dino.data.image_source import ImageSource
from dino.data.label_maps import read_label_map, resize_labels, write_label_map
from dino.data.loaders import read_views
from dino.data.photometric import IMAGENET_STD, Normalization, build_normalization
from dino.errors import OptionError
from dino.evaluation.config import ClipsConfig, DavisConfig, DrivingConfig, PropagationConfig
from dino.evaluation.features import LoaderConfig
from dino.evaluation.runner import Runner
from dino.evaluation.video_segmentation.davis import (
    FRAME_NORMALIZATION,
    Clip,
    compute_frame_size,
    drop_void,
    open_davis,
    resize_frame,
)
from dino.evaluation.video_segmentation.ipace import open_runs
from dino.evaluation.video_segmentation.propagation import (
    Context,
    decide_labels,
    plan_tiles,
    propagate_labels,
)
from dino.evaluation.video_segmentation.report import check_truths, report_davis
from dino.models.dense import build_dense
from dino.runtime.agreement import check_same
from dino.runtime.context import Run, make_output_folder
from dino.runtime.folder_lock import hold_folder
from dino.runtime.ownership import check_own
from dino.runtime.progress import Progress
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)

PROGRESS_EVERY = 20  # frames between two progress lines


def segment_davis(config: DavisConfig, run: Run) -> None:
    """Segment the validation split of DAVIS 2017, and score it if requested.

    Args:
        config: The command line of eval_video_segmentation.py.
        run: Device and processes. Whole sequences are distributed.

    Raises:
        DataError: A file is missing, damaged or of another size, or, with `score`, a first label
            map has no object. All but damage is found before the work begins.
        WeightsError: The weights do not fit.
        OptionError: The output folder is not usable, or the network has no feature map.
    """
    clips = open_davis(config.data.data_path)
    if config.davis.score:
        check_truths(Path(config.data.data_path or ""), clips)
    runner = Runner(config, run)
    values = segment_clips(clips, config, runner)
    if config.davis.score and run.processes.is_rank_zero:
        values["scores"] = report_davis(
            Path(config.data.data_path or ""), Path(config.output.output_dir)
        )
    runner.report(values)


def segment_runs(config: DrivingConfig, run: Run) -> None:
    """Segment driving runs, restarting at every `refresh_label_interval`-th frame (driving fork).

    The first frame and the context restart there, so a run is a series of clips. Clips are
    distributed over the processes. Errors are those of `segment_davis`.
    """
    clips = open_runs(config.data.data_path, config.refresh.chosen_interval)
    runner = Runner(config, run)
    runner.report(segment_clips(clips, config, runner))


def segment_clips(clips: Sequence[Clip], config: ClipsConfig, runner: Runner) -> dict[str, Any]:
    """Write OUTPUT_DIR/NAME/FRAME.png for every frame, and wait for all processes.

    Args:
        clips: Clips to segment. Clips of one name are parts of one sequence.
        config: The command line.
        runner: Runner of the evaluation.

    Returns:
        The number of sequences and of frames, the duration in seconds, and the folder.
    """
    output = make_output_folder(config.output.output_dir)
    with hold_folder(output, first=runner.run.processes.is_rank_zero):
        return _segment_all(clips, config, runner, output)


def _segment_all(
    clips: Sequence[Clip], config: ClipsConfig, runner: Runner, output: Path
) -> dict[str, Any]:
    start, run = time.monotonic(), runner.run
    frames = Counter[str]()
    for clip in clips:
        frames[clip.name] += len(clip.frames)
    check_same(run.processes, {f"frames of {name}": count for name, count in frames.items()})
    run.processes.phase = "segmenting"
    _make_folders(clips, output)
    backbone = runner.load_backbone(center_crops=False)
    mine, done = share_clips(clips, run.processes.world_size)[run.processes.rank], 0
    features = extract_maps(mine, backbone, run, runner.reading)
    progress = Progress(
        sum(len(clip.frames) for clip in mine), "segmentation", shown=run.processes.is_rank_zero
    )
    for clip in mine:
        for number in _segment(clip, features, config.propagation, output / clip.name, run):
            if number == len(clip.frames) or number % PROGRESS_EVERY == 0:
                progress.advance(done + number, {"clip": clip.name})
        done += len(clip.frames)
    progress.close()
    run.processes.wait_for_all("segmented")
    total = sum(frames.values())
    logger.info("%d frames of %d sequences are segmented in %s", total, len(frames), output)
    seconds = time.monotonic() - start
    return {
        "sequences": len(frames),
        "frames": total,
        "seconds": seconds,
        "output_dir": str(output),
    }


def share_clips(clips: Sequence[Clip], world_size: int) -> list[list[Clip]]:
    """Distribute clips over processes, longest first, each to the one with the fewest frames."""
    shares: list[list[Clip]] = [[] for _ in range(world_size)]
    frames = [0] * world_size
    for clip in sorted(clips, key=lambda clip: -len(clip.frames)):
        least = frames.index(min(frames))
        shares[least].append(clip)
        frames[least] += len(clip.frames)
    return shares


def _make_folders(clips: Sequence[Clip], output: Path) -> None:
    for clip in {clip.name: clip for clip in clips}.values():
        if (output / clip.name).resolve() == clip.labels.parent.resolve():
            raise OptionError(
                f"`output_dir` {output} would overwrite the true labels {clip.labels.parent}",
                value=output,
                remedy="name another",
            )
        make_output_folder(str(output / clip.name))
    check_own(output / clip.name / _name(frame) for clip in clips for frame in clip.frames)


def _segment(
    clip: Clip, features: Iterator[Tensor], config: PropagationConfig, folder: Path, run: Run
) -> Iterator[int]:
    """Write the label maps of one clip, the first unchanged, and yield the number written."""
    first_labels, palette = read_label_map(clip.labels)
    truth = drop_void(first_labels) if clip.has_void else first_labels
    maps = itertools.islice(features, len(clip.frames))
    for number, labels in enumerate(propagate_clip(truth, maps, config, run, clip.name), start=1):
        path = folder / _name(clip.frames[number - 1])
        write_label_map(path, first_labels if number == 1 else labels, palette or clip.palette)
        yield number


def _name(frame: Path) -> str:
    return f"{frame.stem}.png"


def propagate_clip(
    truth: NDArray[np.uint8],
    features: Iterator[Tensor],
    config: PropagationConfig,
    run: Run,
    name: str,
) -> Iterator[NDArray[np.uint8]]:
    """Label every frame of a clip.

    Labels are arbitrary byte values. As in the original, a label smaller than a position of the
    feature grid can get lost when labels are resized to it by nearest neighbor, with a warning.

    Args:
        truth: (height, width), the labels of the first frame.
        features: (H, W, D) of every frame, of length 1.
        config: Neighborhood, context and number of neighbors.
        run: The run with the device of the features.
        name: Name of the clip, for the warning.

    Yields:
        (height, width) uint8 labels of every frame. The first are `truth` itself.
    """
    first = next(features)
    grid = (first.shape[0], first.shape[1])
    small = resize_labels(truth, grid)
    present = np.unique(small)
    lost = np.setdiff1d(truth, present)
    if len(lost):
        lost_labels = ", ".join(map(str, lost))
        logger.warning("%s: too small for a grid of %dx%d: lost label %s", name, *grid, lost_labels)
    one_hot = F.one_hot(torch.from_numpy(np.searchsorted(present, small)), len(present))
    context = Context(first, run.device.to_device(one_hot.float()), last=config.n_last_frames)
    tiles = plan_tiles(grid, config.size_mask_neighborhood, first.device)
    yield truth
    for frame_features in features:
        labels = propagate_labels(frame_features, context, tiles, topk=config.topk)
        context.add(frame_features, labels)
        decided = decide_labels(labels, compute_frame_size(*truth.shape))
        yield resize_labels(present[decided.cpu().numpy()], truth.shape)


def extract_maps(
    clips: Sequence[Clip], backbone: TrainedBackbone, run: Run, reading: LoaderConfig
) -> Iterator[Tensor]:
    """Yield the features (H, W, D) float32, of length 1, of every frame of every clip, in order.

    Raises:
        DataError: A frame cannot be decoded.
    """
    network = build_dense(backbone.module, backbone.arch)
    infer, normalization = run.device.compile_eval(network), choose_normalization(backbone)
    names = tuple(str(path) for clip in clips for path in clip.frames)
    dataset = ViewDataset(
        ImageSource(root=Path(), names=names, pixel_range=backbone.pixel_range),
        resize_frame,
        channels=backbone.in_chans,
        share=Share(),
    )
    frames = read_views(
        dataset,
        batch_size=1,
        workers=reading.workers,
        pin_memory=run.device.pins_memory,
        start=run.device.loader_start,
    )
    for clip in clips:
        # Sizes differ between clips, so a batch never spans two. The last batch is padded, because
        # another B would need another graph.
        size = min(reading.batch_size, len(clip.frames))
        for start in range(0, len(clip.frames), size):
            count = min(size, len(clip.frames) - start)
            pixels = torch.cat([frame.pixels for frame in itertools.islice(frames, count)])
            padded = F.pad(pixels, (*(0, 0) * 3, 0, size - len(pixels)))
            maps = F.normalize(infer(normalization(run.device.to_device(padded))).float(), dim=1)
            yield from maps.permute(0, 2, 3, 1)[: len(pixels)].contiguous()


def choose_normalization(backbone: TrainedBackbone) -> Normalization:
    """Return the network's normalization, with the original's video std instead of ImageNet's."""
    own = build_normalization(backbone.in_chans, backbone.normalization)
    return replace(own, std=FRAME_NORMALIZATION.std) if own.std == IMAGENET_STD else own
