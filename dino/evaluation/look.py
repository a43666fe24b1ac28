"""What the features of a set of images say: nearest neighbors, outliers, near-duplicates.

Shapes: N images, D width, k neighbors.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.data.image_source import ImageSource
from dino.data.sources import open_images
from dino.evaluation.config import LikenessConfig, LookConfig
from dino.evaluation.neighbors import ExactIndex, Neighbors, split_queries
from dino.evaluation.runner import Runner
from dino.runtime.context import Run
from dino.weights.load import TrainedBackbone

logger = logging.getLogger(__name__)

NEAREST = 10  # neighbors that say whether an image is an outlier
SHOWN_NEAREST = 7  # neighbors in a row
OUTLIERS = 18
# Features of many networks share a large mean, so that all cosines are almost 1. The mean of a few
# images says nothing about others.
LEAST_CENTERED = 20

Likeness = tuple[int, float]  # an image, and a cosine similarity


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The features of a set of images.

    Attributes:
        runner: The evaluation, which writes `json`.
        backbone: The network, on the run's device.
        source: The images, N of them.
        total: How many there are, of which N are evenly spaced.
        features: (N, D) float32 of length 1, in host memory.
        centered: Whether the mean of all was subtracted first.
    """

    runner: Runner
    backbone: TrainedBackbone
    source: ImageSource
    total: int
    features: Tensor
    centered: bool


def survey_images(config: LookConfig, run: Run, source: ImageSource | None = None) -> Survey:
    """Extract the features of the images of the settings, or of `source`.

    Raises:
        DinoError: `json` cannot be written, the weights do not fit, or an image is missing or
            unreadable.
    """
    runner = Runner(config, run)
    with run.processes.rank_zero_first():
        whole = source or open_images(config.data.data_path)
    chosen = whole.limited(config.limit.data_limit)
    logger.info("source: %s", chosen.describe())
    backbone = runner.load_backbone()
    features = runner.extract(backbone, chosen).features.cpu()
    centered = len(chosen) >= LEAST_CENTERED
    return Survey(
        runner=runner,
        backbone=backbone,
        source=chosen,
        total=len(whole),
        features=F.normalize(features - features.mean(dim=0)) if centered else features,
        centered=centered,
    )


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What was found; each image with a cosine similarity.

    Attributes:
        nearest: Some images, evenly spaced, each with its nearest neighbors after it.
        outliers: The images least similar to their neighbors, with that mean similarity.
        duplicates: Groups of near-duplicates, with the similarity to the first.
    """

    nearest: list[list[Likeness]]
    outliers: list[Likeness]
    duplicates: list[list[Likeness]]


def find_all(survey: Survey, config: LikenessConfig) -> Findings:
    """Search the features, and write what was found to `json`, by file name.

    Raises:
        OptionError: The file cannot be written.
    """
    neighbors, names = find_neighbors(survey.features, NEAREST), survey.source.names
    found = Findings(
        nearest=list_nearest(neighbors, config.shown_images),
        outliers=find_outliers(neighbors, OUTLIERS),
        duplicates=find_duplicates(neighbors, config.duplicate_similarity),
    )
    survey.runner.report(
        {
            "images": len(names),
            "outliers": [(names[index], value) for index, value in found.outliers],
            "duplicates": [[(names[i], value) for i, value in group] for group in found.duplicates],
        }
    )
    return found


def list_nearest(neighbors: Neighbors, count: int) -> list[list[Likeness]]:
    """List images, evenly spaced, each with similarity 1 before its nearest neighbors."""
    total = len(neighbors.places)
    rows = []
    for index in dict.fromkeys(place * total // count for place in range(count)):
        values, places = (part[index, :SHOWN_NEAREST].tolist() for part in neighbors)
        rows.append([(index, 1.0), *zip(places, values, strict=True)])
    return rows


def find_neighbors(features: Tensor, k: int) -> Neighbors:
    """Find the k nearest other images of each image, at most N - 1: (N, D) of length 1 -> (N, k).

    The products of all pairs are never in memory together.
    """
    k = min(k, len(features) - 1)
    index = ExactIndex(features)
    found = [
        [part[:count] for part in index.search(chunk, k + 1)]
        for chunk, count in split_queries(features, len(features))
    ]
    products, places = (torch.cat(parts) for parts in zip(*found, strict=True))
    itself = places == torch.arange(len(features))[:, None]
    # Of more than k equal images, one may not be among its own nearest: then the last one goes.
    best = products.masked_fill(itself, -torch.inf).topk(k, dim=1)
    return Neighbors(best.values, places.gather(1, best.indices))


def find_outliers(neighbors: Neighbors, count: int) -> list[Likeness]:
    """List the images least similar to their neighbors, by mean similarity, the lowest first."""
    if not neighbors.products.numel():
        return []
    means = neighbors.products.mean(dim=1)
    lowest = means.topk(min(count, len(means)), largest=False)
    return list(zip(lowest.indices.tolist(), lowest.values.tolist(), strict=True))


def find_duplicates(neighbors: Neighbors, least: float) -> list[list[Likeness]]:
    """Group images whose similarity is at least `least`, the most similar first.

    Every group is one image and those of its neighbors that are so similar to it, so that a chain
    of small changes is no group. Similarities are those to the first image of the group.
    """
    if not neighbors.products.numel():
        return []
    nearest = neighbors.products[:, 0]
    groups, taken = [], set[int]()
    for first in nearest.argsort(descending=True, stable=True).tolist():
        if nearest[first] < least:
            break
        pairs = zip(
            neighbors.places[first].tolist(), neighbors.products[first].tolist(), strict=True
        )
        like = [(place, value) for place, value in pairs if value >= least and place not in taken]
        if first not in taken and like:
            groups.append([(first, 1.0), *like])
            taken |= {first, *(place for place, _ in like)}
    return groups
