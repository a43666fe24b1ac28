"""Weighted k-NN classification of frozen features (paper, section 4.1).

This is knn_classifier in the original's eval_knn.py.
Shapes: N train vectors, M test vectors, D width, k neighbors, C classes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dino.data.config import DataConfig
from dino.data.image_source import ImageSource
from dino.data.levels import PixelRange
from dino.data.photometric import Normalization
from dino.data.sources import open_labelled_splits, open_online_splits
from dino.errors import DataError
from dino.evaluation.config import KnnConfig
from dino.evaluation.features import (
    Features,
    LoaderConfig,
    build_loader_config,
    extract_features,
    load_features,
    save_features,
)
from dino.evaluation.neighbors import ExactIndex, Index, build_index, log_recall, split_queries
from dino.evaluation.runner import Runner
from dino.runtime.context import Run, make_output_folder
from dino.runtime.metrics import write_events
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)

PAPER_NEIGHBORS = 20  # paper, section 4.1 and appendix
PAPER_TEMPERATURE = 0.07
TOP = 5  # classes of the second accuracy, or k if smaller (`narrow(1, 0, min(5, k))`, eval_knn.py)


class KnnScore(NamedTuple):
    """Accuracies in %. As in the original, `top5` is for the min(5, k, C) best classes."""

    top1: float
    top5: float


def predict_classes(
    train: Features,
    queries: Tensor,
    *,
    neighbors: Sequence[int],
    temperature: float,
    classes: int,
    index: Index | None = None,
) -> dict[int, Tensor]:
    """Rank classes by the weighted vote of each query's nearest train vectors.

    A neighbor at cosine similarity s votes with weight exp(s / temperature). The neighbors are
    found once, for the largest k. Memory is bounded by the chunk, independent of N and M.

    Args:
        train: Normalized (N, D) features and (N,) labels in [0, C).
        queries: (M, D), normalized, on any device.
        neighbors: Values of k, each capped at N.
        temperature: Temperature of the vote, above 0.
        classes: C.
        index: Search index of the train vectors. The default searches all of them.

    Returns:
        {k: (M, min(5, k, C)) int64 classes, best first}, in host memory.
    """
    most = min(max(neighbors), len(train.features))
    labels = train.labels.to(train.features.device)
    index = index or ExactIndex(train.features)
    chunks: dict[int, list[Tensor]] = {k: [] for k in neighbors}
    for chunk, count in split_queries(queries, len(train.features) + classes):
        found = index.search(chunk.to(train.features.device), most)
        # Only ratios of weights matter. Relative to the nearest neighbor, they cannot overflow.
        nearest, voted = found.products.to(labels.device), labels[found.places.to(labels.device)]
        weights = ((nearest - nearest[:, :1]) / temperature).exp()
        for k in neighbors:
            votes = weights.new_zeros(len(chunk), classes)
            votes.scatter_add_(1, voted[:, :k], weights[:, :k])
            # Stable: classes without a vote follow in the order of their index, as in the original.
            ranked = votes.sort(dim=1, descending=True, stable=True).indices
            chunks[k].append(ranked[:, : min(TOP, k)].cpu()[:count])
    return {k: torch.cat(ranked) for k, ranked in chunks.items()}


def score_knn(
    train: Features,
    test: Features,
    *,
    neighbors: Sequence[int],
    temperature: float,
    run: Run,
    classes: int | None = None,
    kind: str = "exact",
) -> dict[int, KnnScore]:
    """Compute the accuracy for each k over the whole test set. Each process classifies its share.

    Args:
        train: The N vectors that vote.
        test: The M vectors to classify.
        neighbors: Values of k, each capped at N.
        temperature: Temperature of the vote.
        run: Device and processes.
        classes: C. The default is the largest label + 1.
        kind: Kind of search: exact or ivf.
    """
    index = build_index(kind, train.features)
    if kind != "exact":
        log_recall(index, train.features, test.features)
    share = slice(run.processes.rank, None, run.processes.world_size)
    counts = {k: min(k, len(train.labels)) for k in neighbors}
    ranked = predict_classes(
        train,
        test.features[share],
        neighbors=list(dict.fromkeys(counts.values())),
        temperature=temperature,
        classes=classes or int(max(train.labels.max(), test.labels.max())) + 1,
        index=index,
    )
    truth = test.labels[share].cpu()[:, None]
    hits = torch.tensor(
        [[(r[:, :1] == truth).sum(), (r == truth).sum()] for r in ranked.values()],
        dtype=torch.float32,
    )
    total = run.processes.all_reduce_sum(run.device.to_device(hits)).tolist()
    rows = dict(zip(ranked, total, strict=True))
    return {
        k: KnnScore(*(100.0 * hit / len(test.labels) for hit in rows[count]))
        for k, count in counts.items()
    }


def evaluate_knn(config: KnnConfig, run: Run) -> dict[int, KnnScore]:
    """Extract (or load) features, vote, and log one result line for each k.

    Raises:
        DinoError: The weights do not fit, a folder is missing, or an image is unreadable.
    """
    runner = Runner(
        config, run, keep_on_device=config.store.store_on_device, max_batches=config.knn.max_batches
    )
    for path in (config.knn.dump_features, config.knn.dump_tb_events):
        if path and run.processes.is_rank_zero:
            make_output_folder(
                path, "`dump_features`" if path == config.knn.dump_features else "`dump_tb_events`"
            )
    train, test = _load(config, run) if config.knn.load_features else _extract(config, runner)
    most = len(train.labels)
    for k in config.knn.nb_knn:
        if k > most and run.processes.is_rank_zero:
            logger.warning(
                "`nb_knn` %d is more than the %d train images, so k is %d", k, most, most
            )
    vote = config.knn
    scores = score_knn(
        train, test, neighbors=vote.nb_knn, temperature=vote.temperature, kind=vote.index, run=run
    )
    for k, score in {min(k, most): score for k, score in scores.items()}.items():
        logger.info("%d-NN classifier result: Top1: %s, Top5: %s", k, score.top1, score.top5)
    by_k = {str(k): score._asdict() for k, score in scores.items()}
    runner.report({"train": most, "test": len(test.labels), "knn": by_k})
    return scores


def build_online_knn(
    data: DataConfig,
    run: Run,
    *,
    image_size: int,
    normalization: Normalization,
    data_limit: int | None = None,
    pixel_range: PixelRange | None = None,
) -> Callable[[nn.Module], Mapping[str, float]]:
    """Build the k-NN score that training computes every few epochs.

    Args:
        data: The training images, with a folder val (or validation) next to them.
        run: Device and processes.
        image_size: S, side in pixels of the global crops.
        normalization: Mean and standard deviation of each of the C channels.
        data_limit: Largest number of training images that vote.
        pixel_range: Levels that become black and white where they have more than 8 bits.

    Returns:
        A function from the teacher's backbone to `knn_top1` and `knn_top5` in %.
    """
    splits = open_online_splits(data.data_path, data_limit)
    reading = build_loader_config(data, run, keep_on_device=True)

    def score(backbone: nn.Module) -> Mapping[str, float]:
        trained = TrainedBackbone(
            module=backbone,
            arch="teacher",
            patch_size=1,  # not used: only the features are
            image_size=image_size,
            in_chans=len(normalization.mean),
            normalization={"mean": [*normalization.mean], "std": [*normalization.std]},
            pixel_range=pixel_range,
        )
        knn_score = score_backbone(trained, splits, run, reading)
        return {"knn_top1": knn_score.top1, "knn_top5": knn_score.top5}

    return score


def score_backbone(
    backbone: TrainedBackbone,
    splits: tuple[ImageSource, ImageSource],
    run: Run,
    reading: LoaderConfig,
) -> KnnScore:
    """Score one backbone on (train, validation) images with the paper's k and temperature.

    Raises:
        DataError: An image cannot be decoded.
    """
    train, test = (extract_features(backbone, source, run, reading) for source in splits)
    k, classes = PAPER_NEIGHBORS, len(splits[0].classes)
    return score_knn(
        train, test, neighbors=(k,), temperature=PAPER_TEMPERATURE, classes=classes, run=run
    )[k]


def _load(config: KnnConfig, run: Run) -> tuple[Features, Features]:
    folder = Path(config.knn.load_features or "")
    train, test = load_features(folder, "train"), load_features(folder, "test")
    if train.features.shape[1:] != test.features.shape[1:]:
        raise DataError(
            f"`load_features` {folder}: train and test features must have the same width "
            f"(got {train.features.shape[1]} and {test.features.shape[1]})",
            value=folder,
        )
    if config.store.store_on_device:
        train = Features(features=run.device.to_device(train.features), labels=train.labels)
    return train, test


def _extract(config: KnnConfig, runner: Runner) -> tuple[Features, Features]:
    processes = runner.run.processes
    with processes.rank_zero_first():
        sources = open_labelled_splits(config.data.data_path)
    backbone = runner.load_backbone()
    splits, speeds = [], {}
    for name, source in zip(("train", "test"), sources, strict=True):
        logger.info("source (%s): %s", name, source.describe())
        start = time.monotonic()
        splits.append(runner.extract(backbone, source))
        speeds[f"{name}/examples/sec"] = len(splits[-1].labels) / (time.monotonic() - start)
        if config.knn.dump_features and processes.is_rank_zero:
            save_features(Path(config.knn.dump_features), name, splits[-1])
    if config.knn.dump_tb_events and processes.is_rank_zero:
        write_events(Path(config.knn.dump_tb_events), speeds)
    return splits[0], splits[1]
