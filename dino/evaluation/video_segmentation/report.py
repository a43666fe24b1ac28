"""Report the scores of label maps: tables for people, figures for programs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dino.config import chosen
from dino.data.label_maps import ScoredClip
from dino.errors import DataError, OptionError
from dino.evaluation.config import MetricsConfig, SegmentationMetricsConfig
from dino.evaluation.video_segmentation.davis import VOID, Clip, check_sizes, list_truths
from dino.evaluation.video_segmentation.pairs import (
    DAVIS,
    list_clips,
    list_unscored,
    recognize_layout,
)
from dino.evaluation.video_segmentation.scores import (
    ObjectScore,
    RunScore,
    add_runs,
    average_objects,
    find_objects,
    score_run,
    score_sequence,
)
from dino.runtime.metrics import check_target, write_csv, write_result
from dino.runtime.progress import Progress

logger = logging.getLogger(__name__)

Rows = list[tuple[Any, ...]]

DRIVING_ONLY = ("num_classes", "ignore_label", "skip_refreshed", "refresh_label_interval")


def open_clips(config: SegmentationMetricsConfig) -> tuple[str, list[ScoredClip]]:
    """Find the layout and the frames to score.

    Raises:
        OptionError: A setting does not apply to this layout, or an output cannot be written.
        DataError: A folder or a frame is missing or unexpected, or sizes differ. The text names it.
    """
    metrics = config.metrics
    check_target(metrics.csv, "`csv`")
    check_target(config.report.json)
    root, predictions = (
        _existing(name, getattr(metrics, name)) for name in ("dataset_path", "prediction_path")
    )
    layout = metrics.layout or recognize_layout(root)
    for name in DRIVING_ONLY:
        value = getattr(config.refresh if name == "refresh_label_interval" else metrics, name)
        if layout == DAVIS and value is not None and value is not False:
            raise OptionError(
                f"`{name}` is only for driving runs",
                remedy=f"`dataset_path` {root} has the layout of DAVIS 2017",
            )
    clips = list_clips(layout, root, predictions)
    if names := list_unscored(clips, predictions):
        logger.warning("not scored, because the data set lacks the names: %s", ", ".join(names))
    if metrics.skip_refreshed:
        clips = [_without_refreshed(clip, config.refresh.chosen_interval) for clip in clips]
    picture = next((frame for clip in clips for frame in clip.frames if frame.image is None), None)
    if metrics.pictures and picture:
        raise DataError(
            f"`pictures` needs the picture of {picture.truth}, which `dataset_path` {root} lacks",
            value=root,
        )
    return layout, clips


def report_metrics(
    config: SegmentationMetricsConfig, layout: str, clips: Sequence[ScoredClip]
) -> None:
    """Score label maps, print the tables and write the requested files.

    Raises:
        DataError: A label map cannot be read or has unknown labels.
        OptionError: A file cannot be written.
    """
    if layout == DAVIS:
        values, rows = _report_davis(clips)
    else:
        values, rows = _report_driving(clips, config.metrics, config.refresh.chosen_interval)
    if config.metrics.csv:
        write_csv(config.metrics.csv, rows)
    write_result(config.report.json, {"layout": layout, **values})


def check_truths(dataset_path: Path, clips: Sequence[Clip]) -> None:
    """Check the true labels of DAVIS 2017 before predictions are made for them.

    Raises:
        DataError: A label map is missing, unexpected or of another size, or the first one has no
            object. The text names it.
    """
    for clip in clips:
        truths, frames = list_truths(dataset_path, clip.name), {path.stem for path in clip.frames}
        for path in truths:
            if path.stem not in frames:
                raise DataError(f"{path} matches no frame of its clip")
        find_objects(clip.labels)
        check_sizes(clip.labels, truths)


def report_davis(dataset_path: Path, prediction_path: Path) -> dict[str, Any]:
    """Score a folder of DAVIS 2017 predictions and print the table.

    Args:
        dataset_path: The DAVIS folder (ImageSets, Annotations).
        prediction_path: Folder with one folder of indexed PNGs per sequence of the val split.

    Returns:
        The means over objects under the benchmark's names (`J&F-Mean`, `J-Mean`, `J-Recall`,
        `J-Decay`, `F-Mean`, `F-Recall`, `F-Decay`; 0 to 1), `frames`, and the same figures by
        sequence and object under `sequences` and `objects`.

    Raises:
        DataError: A folder or a frame is missing or unexpected, sizes differ, or labels are
            unknown. The text names it.
    """
    return _report_davis(list_clips(DAVIS, dataset_path, prediction_path))[0]


def _report_davis(clips: Sequence[ScoredClip]) -> tuple[dict[str, Any], Rows]:
    # All label maps are read first, so that errors appear at once.
    labels = {clip.name: find_objects(clip.first) for clip in clips}
    _tell_of_gaps(labels)
    progress = Progress(sum(len(clip.frames) for clip in clips), "frames scored")
    scored = {
        clip.name: score_sequence(labels[clip.name], progress.follow(clip.frames)) for clip in clips
    }
    progress.close()
    sequences = {name: average_objects(scores) for name, scores in scored.items()}
    objects = {
        f"{name}_{label}": score
        for name, scores in scored.items()
        for label, score in zip(labels[name], scores, strict=True)
    }
    # The benchmark averages over objects, not over sequences.
    total = average_objects(list(objects.values()))
    frames = {clip.name: len(clip.frames) for clip in clips}
    rows: Rows = [("kind", "name", "frames", *total.named())]
    for name, scores in scored.items():
        rows += [
            ("object", f"{name}_{label}", frames[name], *score.named().values())
            for label, score in zip(labels[name], scores, strict=True)
        ]
        rows.append(("sequence", name, frames[name], *sequences[name].named().values()))
    rows.append(("mean", "mean over objects", sum(frames.values()), *total.named().values()))
    _print_table([row[1:] for row in rows])
    logger.info(
        "DAVIS 2017: %s  (%d objects, %d sequences, %d frames)",
        "  ".join(f"{name} {value:.4f}" for name, value in total.named().items()),
        len(objects),
        len(clips),
        sum(frames.values()),
    )
    figures = {"sequences": _named(sequences), "objects": _named(objects)}
    return {**total.named(), "frames": sum(frames.values()), **figures}, rows


def _tell_of_gaps(labels: Mapping[str, tuple[int, ...]]) -> None:
    """Report sequences for which davis2017-evaluation counts labels that do not exist."""
    for name, objects in labels.items():
        if objects not in (tuple(range(1, len(objects) + 1)), (VOID,)):
            logger.info(
                "%s: scored are the %d labels that exist, %s; davis2017-evaluation scores each of "
                "1 to %d, absent ones as 1",
                *(name, len(objects), ", ".join(map(str, objects)), objects[-1]),
            )


def _report_driving(
    clips: Sequence[ScoredClip], metrics: MetricsConfig, interval: int
) -> tuple[dict[str, Any], Rows]:
    progress = Progress(sum(len(clip.frames) for clip in clips), "frames scored")
    runs = {
        clip.name: score_run(
            progress.follow(clip.frames),
            num_classes=int(chosen(metrics, "num_classes")),
            ignored=metrics.ignore_label,
        )
        for clip in clips
    }
    progress.close()
    total = add_runs(list(runs.values()))
    everything = [*runs.items(), ("total", total)]
    classes = total.iou()
    _print_table(
        [("run", "frames", "classes", "accuracy", "mean IoU")]
        + [(name, s.frames, len(s.iou()), s.accuracy(), s.mean_iou()) for name, s in everything]
    )
    share = total.counts.sum(axis=1) / max(total.counts.sum(), 1)
    _print_table(
        [("class", "of pixels", "IoU")]
        + [(f"{c}", float(share[c]), iou) for c, iou in classes.items()]
    )
    unlabelled = sum(clip.unlabelled for clip in clips)
    if unlabelled:
        logger.info("%d frames have no true labels and are not scored", unlabelled)
    _tell_of_refreshed(clips, interval, total.copied if metrics.skip_refreshed else 0)
    logger.info(
        "driving: mean IoU %.4f  accuracy %.4f  (%d classes, %d runs, %d frames)",
        total.mean_iou(),
        total.accuracy(),
        len(classes),
        len(runs),
        total.frames,
    )
    rows: Rows = [("run", "frames", "class", "IoU")]
    for name, score in everything:
        rows += [(name, score.frames, label, iou) for label, iou in score.iou().items()]
        rows.append((name, score.frames, "mean", score.mean_iou()))
    return {
        **_describe(total),
        "runs": {name: _describe(score) for name, score in runs.items()},
    }, rows


def _tell_of_refreshed(clips: Sequence[ScoredClip], interval: int, copied: int) -> None:
    """Report frames that inflate the scores because their predictions are their true labels."""
    if copied:
        logger.warning(
            "%d counted frames have predictions equal to their true labels, although "
            "`skip_refreshed` leaves out every %d-th; was another `refresh_label_interval` used?",
            copied,
            interval,
        )
    refreshed = sum(frame.number % interval == 0 for clip in clips for frame in clip.frames)
    if refreshed:
        logger.info(
            "%d frames, every %d-th of a run, are counted although eval_ipace_segmentation.py "
            "writes their true labels as predictions; `skip_refreshed` leaves them out",
            refreshed,
            interval,
        )


def _describe(score: RunScore) -> dict[str, Any]:
    return {
        "mean_iou": score.mean_iou(),
        "accuracy": score.accuracy(),
        "frames": score.frames,
        "classes": score.iou(),
    }


def _named(scores: Mapping[str, ObjectScore]) -> dict[str, dict[str, float]]:
    return {name: score.named() for name, score in scores.items()}


def _print_table(rows: Rows) -> None:
    """Log a table with names aligned left and figures aligned right."""
    cells = [
        [f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, *figures in cells:
        aligned = (figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True))
        logger.info("%s", "  ".join([name.ljust(widths[0]), *aligned]))


def _existing(name: str, path: str | None) -> Path:
    if not path:
        raise DataError(
            f"`{name}` is missing: name the folders of the true and the predicted label maps"
        )
    if not Path(path).is_dir():
        raise DataError(f"`{name}` {path} is not a folder", value=path)
    return Path(path)


def _without_refreshed(clip: ScoredClip, interval: int) -> ScoredClip:
    frames = tuple(frame for frame in clip.frames if frame.number % interval)
    if not frames:
        raise DataError(f"the run {clip.name} has only frames that `skip_refreshed` leaves out")
    return replace(clip, frames=frames)
