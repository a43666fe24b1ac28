"""Retrieval on revisited Oxford and Paris: rank the database by similarity, and score the ranking.

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
from dino.runtime.agreement import check_images
from dino.runtime.context import Run
from dino.weights.hub import PUBLISHED_FOR_RETRIEVAL
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)


def evaluate_retrieval(config: RetrievalConfig, run: Run) -> dict[str, RankingScore]:
    """Extract features, rank the images, and log the two result lines.

    Returns:
        Scores under `M` (easy and hard images are positives) and `H` (only hard images are; easy
        ones are ignored), on every process.

    Raises:
        DinoError: The weights do not fit, a file is missing or unreadable, or an image is smaller
            than a patch.
    """
    runner = Runner(config, run, keep_on_device=config.store.store_on_device)
    landmark = config.retrieval
    landmarks = open_landmarks(
        config.data.data_path, landmark.dataset, crop_queries=landmark.crop_queries
    )
    backbone = runner.load_backbone(PUBLISHED_FOR_RETRIEVAL, center_crops=False)
    patch = backbone.patch_size if is_vit(backbone.arch) else 1
    if landmark.multiscale:
        backbone = dataclasses.replace(backbone, module=MultiScale(backbone.module))
    # Smaller scales use the rows and columns of partial patches too, so multiscale keeps them.
    view = Thumbnail(longest=config.size.imsize, patch=1 if landmark.multiscale else patch)
    shapes = read_shapes(landmarks.source, view, run)
    check_shapes(landmarks.source, shapes, least=patch * (2 if landmark.multiscale else 1))
    check_network(backbone, min(shapes))
    queries = len(landmarks.truths)
    database = len(shapes) - queries
    logger.info(
        "train: %d imgs / query: %d imgs, in %d shapes", database, queries, len(set(shapes))
    )
    features = extract(backbone, landmarks.source, shapes, view, runner)
    scores = score_landmarks(rank(features[:database], features[database:]), landmarks.truths)
    _log_scores(landmark.dataset, scores)
    runner.report({"dataset": landmark.dataset, **_name_all(scores)})
    return scores


def read_shapes(source: ImageSource, view: Thumbnail, run: Run) -> list[Shape]:
    """Return (H, W) of each image's view, from the file headers. Each process reads its share.

    Raises:
        DataError: A file is not a picture, or a query's box is outside its picture.
    """
    processes = run.processes
    check_images(processes, source)
    mine = range(processes.rank, len(source), processes.world_size)
    own_sizes = [view.compute_size(*source.read_size(index)) for index in mine]
    sizes = run.device.to_device(torch.tensor(own_sizes, dtype=torch.int32).reshape(-1, 2))
    return [(height, width) for height, width in processes.gather_rows(sizes, len(source)).tolist()]


def check_shapes(source: ImageSource, shapes: Sequence[Shape], *, least: int) -> None:
    """Refuse images with a side of less than `least` pixels.

    Raises:
        DataError: An image is too small. The text names it and its size.
    """
    for index, shape in enumerate(shapes):
        if min(shape) < least:
            raise DataError(
                f"each side of {source.path(index)} must be at least {least} pixels "
                f"(got {shape[1]} x {shape[0]})",
                remedy="try a larger `imsize` or a smaller `patch_size`",
            )


def check_network(backbone: TrainedBackbone, shape: Shape) -> None:
    """Check on the host that the network accepts any image shape. timm's ViTs, for example, do not.

    Raises:
        OptionError: It does not. The text quotes the network's error.
    """
    try:
        with torch.inference_mode():
            backbone.module(torch.zeros(1, backbone.in_chans, *shape))
    except (AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise OptionError(
            f"`arch` {backbone.arch} does not accept images of {shape[1]} x {shape[0]}: {reason}",
            value=backbone.arch,
        ) from error


def extract(
    backbone: TrainedBackbone,
    source: ImageSource,
    shapes: Sequence[Shape],
    view: Callable[[Tensor], Tensor],
    runner: Runner,
) -> Tensor:
    """Extract features of images of many shapes: (N, D), normalized, in the order of `source`.

    Images are read in the order of their shapes, so each shape occurs once, in large batches.

    Args:
        backbone: (B, C, H, W) -> (B, D) for any H and W.
        source: N images.
        shapes: (H, W) of each image's view.
        view: Turns an image into its view.
        runner: Runner of the evaluation.

    Raises:
        DataError: An image cannot be decoded.
    """
    order = sorted(range(len(source)), key=shapes.__getitem__)
    ordered = [shapes[index] for index in order]
    features = runner.extract(backbone, source.selected(order), cut=view, shapes=ordered).features
    inverse = torch.tensor(order).argsort().to(torch.int32)
    return features.index_select(0, inverse.to(features.device))


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
    """Name all scores: `map_M`, `mp@1_M` and so on."""
    named = {}
    for level, score in scores.items():
        named[f"map_{level}"] = score.map
        for depth, value in zip(DEPTHS, score.mean_precisions, strict=True):
            named[f"mp@{depth}_{level}"] = float(value)
    return named
