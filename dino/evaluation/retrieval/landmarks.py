"""Retrieval on revisited Oxford and Paris: rank the database by likeness to each query, and judge the ranking.

Paper, section 4.2.1; eval_image_retrieval.py of the original. Shapes: N images, D width.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from dino.data.datasets import Shape
from dino.data.image_source import ImageSource
from dino.errors import DataError, OptionError
from dino.evaluation.config import RetrievalConfig
from dino.evaluation.descriptors import MultiScale
from dino.evaluation.retrieval.oxford_paris import Thumbnail, open_landmarks
from dino.evaluation.retrieval.ranking import DEPTHS, RankingScore, rank, score_landmarks
from dino.evaluation.runner import Runner
from dino.models.registry import is_vit
from dino.runtime.context import Run
from dino.weights.hub import PUBLISHED_FOR_RETRIEVAL
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)


def evaluate_retrieval(config: RetrievalConfig, run: Run) -> dict[str, RankingScore]:
    """Describe all images, rank, and log the two result lines.

    Returns:
        Scores under `M` (easy and hard images are right) and `H` (only hard ones are; easy ones do not count), on every
        process.

    Raises:
        DinoError: Wrong weights, missing or unreadable files, images smaller than a patch.
    """
    runner, landmark = (
        Runner(config, run, keep_on_device=config.store.store_on_device),
        config.retrieval,
    )
    landmarks = open_landmarks(
        config.data.data_path, landmark.dataset, crop_queries=landmark.crop_queries
    )
    backbone = runner.load_backbone(PUBLISHED_FOR_RETRIEVAL)
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
    logger.info(
        "train: %d imgs / query: %d imgs, in %d shapes", database, queries, len(set(shapes))
    )
    features = describe(backbone, landmarks.source, shapes, view, runner)
    scores = score_landmarks(rank(features[:database], features[database:]), landmarks.truths)
    _log_scores(landmark.dataset, scores)
    runner.report({"dataset": landmark.dataset, **_name_all(scores)})
    return scores


def read_shapes(source: ImageSource, view: Thumbnail, run: Run) -> list[Shape]:
    """(H, W) of the view of each image, from the files' headers; each process reads its share of them.

    Raises:
        DataError: A file is no picture, or a query's box lies outside of its picture.
    """
    processes = run.processes
    mine = range(processes.rank, len(source), processes.world_size)
    found = [view.compute_size(*source.read_size(index)) for index in mine]
    sizes = run.device.to_device(torch.tensor(found, dtype=torch.int32).reshape(-1, 2))
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
            f"`arch` {backbone.arch} does not take images of {shape[1]} x {shape[0]}: {reason}",
            value=backbone.arch,
        ) from error


def describe(
    backbone: TrainedBackbone,
    source: ImageSource,
    shapes: Sequence[Shape],
    view: Callable[[Tensor], Tensor],
    runner: Runner,
) -> Tensor:
    """Features of images of many shapes, (N, D), normalized, in the order of `source`.

    They are read in the order of their shapes: each is met once, in batches as large as may be.

    Args:
        backbone: (B, C, H, W) -> (B, D) for any H and W.
        source: N images.
        shapes: (H, W) of each image's view.
        view: From an image to its view.
        runner: Reads and describes them.

    Raises:
        DataError: An image cannot be decoded.
    """
    order = sorted(range(len(source)), key=shapes.__getitem__)
    ordered = [shapes[index] for index in order]
    found = runner.extract(backbone, source.selected(order), cut=view, shapes=ordered).features
    places = torch.tensor(order).argsort().to(torch.int32)
    return found.index_select(0, places.to(found.device))


def _log_scores(name: str, scores: Mapping[str, RankingScore]) -> None:
    maps = {level: np.around(score.map * 100, decimals=2) for level, score in scores.items()}
    precisions = {
        level: np.around(score.mean_precisions * 100, decimals=2) for level, score in scores.items()
    }
    logger.info(">> %s: mAP M: %s, H: %s", name, maps["M"], maps["H"])
    logger.info(
        ">> %s: mP@k%s M: %s, H: %s", name, np.array(DEPTHS), precisions["M"], precisions["H"]
    )


def _name_all(scores: Mapping[str, RankingScore]) -> dict[str, float]:
    """`map_M`, `mp@1_M` and so on."""
    found = {}
    for level, score in scores.items():
        found[f"map_{level}"] = score.map
        for depth, value in zip(DEPTHS, score.mean_precisions, strict=True):
            found[f"mp@{depth}_{level}"] = float(value)
    return found
