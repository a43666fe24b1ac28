"""Retrieval on revisited Oxford and Paris: rank the database by likeness to each query, and judge the ranking.

Paper, section 4.2.1; eval_image_retrieval.py and utils.compute_map of the original. Shapes: N database images,
Q queries, K numbers of images to look at, D width.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dino.data.datasets import Shape
from dino.data.image_source import ImageSource
from dino.data.oxford_paris import Thumbnail, Truth, open_landmarks
from dino.errors import DataError, OptionError
from dino.evaluation.average_precision import compute_average_precision
from dino.evaluation.config import RetrievalConfig
from dino.evaluation.descriptors import MultiScale
from dino.evaluation.features import Reading, build_reading, extract_features
from dino.models.registry import is_vit
from dino.runtime.context import Run
from dino.runtime.metrics import check_target, write_result
from dino.weights.hub import PUBLISHED_FOR_RETRIEVAL
from dino.weights.load import TrainedBackbone, load_backbone

logger = logging.getLogger(__name__)

DEPTHS = (1, 5, 10)  # of the mean precision


@dataclass(frozen=True, kw_only=True)
class RankingScore:
    """How good rankings are, all 0 to 1; nan for a query without positives, which no mean counts.

    Attributes:
        average_precisions: (Q,).
        precisions: (Q, K): share of positives among the first k, or up to the last positive where that comes earlier.
    """

    average_precisions: np.ndarray
    precisions: np.ndarray

    @property
    def map(self) -> float:
        """Mean over queries; nan without any that counts."""
        return float(_mean(self.average_precisions))

    @property
    def mean_precisions(self) -> np.ndarray:
        """(K,)."""
        return _mean(self.precisions)


def _mean(rows: np.ndarray) -> np.ndarray:
    counted = rows[~np.isnan(rows.reshape(len(rows), -1)[:, 0])]
    return counted.mean(axis=0) if len(counted) else np.full(rows.shape[1:], np.nan)


def evaluate_retrieval(config: RetrievalConfig, run: Run) -> dict[str, RankingScore]:
    """Describe all images, rank, and log the two result lines.

    Returns:
        Scores under `M` (easy and hard images are right) and `H` (only hard ones are; easy ones do not count), on every
        process.

    Raises:
        DinoError: Wrong weights, missing or unreadable files, images smaller than a patch.
    """
    check_target(config.report.json)
    landmark, data = config.retrieval, config.data
    landmarks = open_landmarks(data.data_path, landmark.dataset, crop_queries=landmark.crop_queries)
    with run.processes.rank_zero_first():
        backbone = load_backbone(config.backbone, config.weights, published=PUBLISHED_FOR_RETRIEVAL)
    patch = backbone.patch_size if is_vit(backbone.arch) else 1
    if landmark.multiscale:
        backbone = dataclasses.replace(backbone, module=MultiScale(backbone.module))
    # Rows and columns that fill no patch belong to the smaller scales too, so those keep them.
    view = Thumbnail(longest=config.size.imsize, patch=1 if landmark.multiscale else patch)
    shapes = read_shapes(landmarks.source, view, run)
    check_shapes(landmarks.source, shapes, least=patch * (2 if landmark.multiscale else 1))
    check_network(backbone, min(shapes))
    queries = len(landmarks.truths)
    database = len(shapes) - queries
    logger.info("train: %d imgs / query: %d imgs, in %d shapes", database, queries, len(set(shapes)))
    reading = build_reading(data, run, keep_on_device=config.store.store_on_device)
    features = describe(backbone, landmarks.source, shapes, view, run, reading)
    scores = score_landmarks(rank(features[:database], features[database:]), landmarks.truths)
    _report(scores, config, run)
    return scores


def read_shapes(source: ImageSource, view: Thumbnail, run: Run) -> list[Shape]:
    """(H, W) of the view of each image, from the files' headers; each process reads its share of them.

    Raises:
        DataError: A file is no picture, or a query's box lies outside of its picture.
    """
    processes = run.processes
    mine = range(processes.rank, len(source), processes.world)
    found = [view.compute_size(*source.read_size(index)) for index in mine]
    sizes = run.device.place(torch.tensor(found, dtype=torch.int32).reshape(-1, 2))
    return [(height, width) for height, width in processes.gather_rows(sizes, len(source)).tolist()]


def check_shapes(source: ImageSource, shapes: Sequence[Shape], *, least: int) -> None:
    """Refuse images with a side of less than `least` pixels.

    Raises:
        DataError: With the first such image and its size.
    """
    for index, shape in enumerate(shapes):
        if min(shape) < least:
            raise DataError(
                f"{source.path(index)} would be {shape[1]} x {shape[0]} pixels large, and no side may "
                f"be less than {least}",
                remedy="a larger `imsize` or a smaller `patch_size` may do",
            )


def check_network(backbone: TrainedBackbone, shape: Shape) -> None:
    """Refuse a network that does not take images of any shape, such as timm's vision transformers, on the host.

    Raises:
        OptionError: With what the network said.
    """
    try:
        with torch.inference_mode():
            backbone.module(torch.zeros(1, backbone.in_chans, *shape))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"`arch` {backbone.arch} does not take images of {shape[1]} x {shape[0]}: {reason}", value=backbone.arch
        ) from error


def describe(
    backbone: TrainedBackbone,
    source: ImageSource,
    shapes: Sequence[Shape],
    view: Callable[[Tensor], Tensor],
    run: Run,
    reading: Reading,
) -> Tensor:
    """Features of images of many shapes, (N, D), normalized, in the order of `source`.

    They are read in the order of their shapes: each is met once, in batches as large as may be.

    Args:
        backbone: (B, C, H, W) -> (B, D) for any H and W.
        source: N images.
        shapes: (H, W) of each image's view.
        view: From an image to its view.
        run: Device and processes.
        reading: Batch size, loader processes, where to keep features.

    Raises:
        DataError: An image cannot be decoded.
    """
    order = sorted(range(len(source)), key=shapes.__getitem__)
    ordered = [shapes[index] for index in order]
    found = extract_features(backbone, source.selected(order), run, reading, cut=view, shapes=ordered).features
    places = torch.tensor(order).argsort().to(torch.int32)
    return found.index_select(0, places.to(found.device))


def rank(database: Tensor, queries: Tensor) -> np.ndarray:
    """Sort the database by likeness to each query, on the CPU, since sorting is not every device's strength.

    Args:
        database: (N, D), normalized.
        queries: (Q, D), normalized.

    Returns:
        (N, Q) indices, the most similar image of a query first in its column.
    """
    similarity = (database @ queries.T).cpu()
    return similarity.argsort(dim=0, descending=True, stable=True).numpy()


def score_landmarks(ranks: np.ndarray, truths: Sequence[Truth]) -> dict[str, RankingScore]:
    """Score rankings (N, Q) by the protocols Medium and Hard."""
    medium = [(np.concatenate([truth.easy, truth.hard]), truth.junk) for truth in truths]
    hard = [(truth.hard, np.concatenate([truth.junk, truth.easy])) for truth in truths]
    return {"M": score_ranks(ranks, medium), "H": score_ranks(ranks, hard)}


def score_ranks(ranks: np.ndarray, truths: Sequence[tuple[np.ndarray, np.ndarray]]) -> RankingScore:
    """Judge rankings.

    Args:
        ranks: (N, Q) database indices, the best first.
        truths: Positives and junk of each query; junk is neither right nor wrong, as if it were not ranked.
    """
    judged = [_score_query(column, *truth) for column, truth in zip(ranks.T, truths, strict=True)]
    return RankingScore(
        average_precisions=np.array([precision for precision, _ in judged]),
        precisions=np.array([precisions for _, precisions in judged]),
    )


def _score_query(ranked: np.ndarray, positives: np.ndarray, junk: np.ndarray) -> tuple[float, list[float]]:
    if not len(positives):
        return np.nan, [np.nan] * len(DEPTHS)
    places = np.flatnonzero(np.isin(ranked, positives))
    is_junk = np.isin(ranked, junk)
    found = places - (is_junk.cumsum() - is_junk)[places]
    depths = [min(found[-1] + 1, depth) for depth in DEPTHS]
    precisions = [float((found < depth).sum() / depth) for depth in depths]
    return compute_average_precision(found, len(positives)), precisions


def _report(scores: Mapping[str, RankingScore], options: RetrievalConfig, run: Run) -> None:
    name = options.retrieval.dataset
    maps = {level: np.around(score.map * 100, decimals=2) for level, score in scores.items()}
    precisions = {level: np.around(score.mean_precisions * 100, decimals=2) for level, score in scores.items()}
    logger.info(">> %s: mAP M: %s, H: %s", name, maps["M"], maps["H"])
    logger.info(">> %s: mP@k%s M: %s, H: %s", name, np.array(DEPTHS), precisions["M"], precisions["H"])
    if run.processes.is_first:
        found = {
            f"{measure}_{level}": value
            for level, score in scores.items()
            for measure, value in {"map": score.map, **_name(score.mean_precisions)}.items()
        }
        write_result(options.report.json, {"dataset": name, **found})


def _name(precisions: np.ndarray) -> dict[str, float]:
    return {f"mp@{depth}": float(value) for depth, value in zip(DEPTHS, precisions, strict=True)}
