"""Frozen backbones: features, scores, attention maps."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from dino.api.inputs import (
    InFormat,
    check_settings,
    extract,
    is_path,
    lend,
    open_frozen_run,
    open_source,
    open_splits,
    refuse_made,
)
from dino.config import as_recipe, build
from dino.data.photometric import build_normalization
from dino.evaluation.config import LinearConfig
from dino.evaluation.knn import KnnScore, score_knn
from dino.evaluation.linear.head import LinearScore
from dino.evaluation.linear.probe import evaluate_linear
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.vit import VisionTransformer
from dino.visualization.attention import AttentionReader, check_size
from dino.visualization.attention_maps import ClsAttention

# Settings of the command that the `backbone` and `data` arguments replace.
MADE = (
    "data_path",
    *(field.name for config in (BackboneConfig, WeightsConfig) for field in fields(config)),
)


@dataclass(frozen=True)
class Embeddings:
    """Features of images, in the order of the data set.

    Attributes:
        vectors: (N, D) float32 on the CPU, not normalized.
        names: One name per image: its path relative to the folder, its path in a list of paths,
            or otherwise its index.
        labels: (N,) int64 on the CPU, or None unless every image has a label.
    """

    vectors: Tensor
    names: list[str]
    labels: Tensor | None = None


def embed(
    backbone: nn.Module,
    images: Any,
    *,
    device: str | None = None,
    precision: str | None = None,
    batch_size_per_device: int = 128,
    num_workers: int | None = None,
) -> Embeddings:
    """Run a backbone over the center crop of every image.

    Args:
        backbone: A module from `load`, or any module that maps (B, 3, 224, 224) float32, normalized
            as ImageNet, to (B, D). Its device and its mode are restored afterwards.
        images: A path (folder, tar shards, list of files, "demo", one picture); a list of paths,
            PIL images, uint8 arrays (H, W, C) or tensors (C, H, W), of any sizes; a map-style torch
            Dataset of these, or of tuples (image, label, ...); or a uint8 tensor (N, C, H, W).
        device: hpu, cuda, cpu or ipu. The default is the best available device.
        precision: fp32 (default), bf16 or fp16.
        batch_size_per_device: Images per batch on each device.
        num_workers: Loader processes. The default is one per core, at most ten, and none for lists
            and tensors in memory.

    Raises:
        DataError: There are no images, or an image cannot be read.
        DeviceError: The device is not available, or does not support the number format.
        OptionError: A value has the wrong type or is out of range.
        TypeError: The backbone does not return a tensor.
    """
    settings = check_settings(
        device=device,
        precision=precision,
        batch_size_per_device=batch_size_per_device,
        num_workers=num_workers,
    )
    source = open_source(images)
    with open_frozen_run(settings.device, settings.precision) as run:
        extracted = extract(backbone, [source], run, settings.data, normalize=False)[0]
    labels = extracted.labels.cpu() if bool((extracted.labels >= 0).all()) else None
    return Embeddings(extracted.features.float().cpu(), list(source.names), labels)


def knn(
    backbone: nn.Module,
    data: Any,
    *,
    nb_knn: int | Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    device: str | None = None,
    precision: str | None = None,
    batch_size_per_device: int = 128,
    num_workers: int | None = None,
) -> dict[int, KnnScore]:
    """Score a frozen backbone by weighted k-NN (paper, section 4.1).

    Args:
        backbone: As in `embed`.
        data: A folder that holds train and val, each with class folders; or a pair (train, val) of
            labelled images, each as in `embed`. A Dataset without `targets` is read once more for
            its labels.
        nb_knn: Numbers of neighbors. Each is capped at the number of training images.
        temperature: Temperature of the vote.
        device: As in `embed`.
        precision: As in `embed`.
        batch_size_per_device: As in `embed`.
        num_workers: As in `embed`.

    Returns:
        `top1` and `top5` for each of `nb_knn`, in percent of the val images.

    Raises:
        DataError: A split is missing or has no labels, the splits have different classes, or an
            image cannot be read.
        DeviceError: As in `embed`.
        OptionError: As in `embed`.
        TypeError: As in `embed`.
    """
    settings = check_settings(
        **{"nb_knn": nb_knn, "temperature": temperature, "device": device, "precision": precision},
        **{"batch_size_per_device": batch_size_per_device, "num_workers": num_workers},
    )
    splits = open_splits(data)
    vote = settings.vote
    with open_frozen_run(settings.device, settings.precision) as run:
        train, test = extract(backbone, splits, run, settings.data, normalize=True)
        return score_knn(train, test, neighbors=vote.nb_knn, temperature=vote.temperature, run=run)


def linear_probe(
    backbone: nn.Module,
    data: Any,
    output_dir: str | os.PathLike[str],
    *,
    precision: str | None = None,
    **settings: Any,
) -> LinearScore:
    """Train a linear classifier on a frozen backbone and score it on val (paper, section 4.1).

    While it trains on the CPU, the process keeps the memory it frees, as in `pretrain`.

    Args:
        backbone: A module from `load`.
        data: As in `knn`.
        output_dir: Folder of the layer's checkpoint, log.txt and TensorBoard events. The same call
            continues from it.
        precision: Precision of the backbone, as in `embed`. The layer is float32.
        **settings: Named like the flags of eval_linear.py, with the same defaults: `epochs`, `lr`,
            `n_last_blocks`, `cache_features`, `device`, `batch_size_per_device` and so on.

    Returns:
        `loss`, `top1` and `top5` of the last validation, the last two in percent. `top5` is None
        for fewer than five classes.

    Raises:
        TypeError: A keyword is not a setting, or the backbone has no `embed_dim`.
        DinoError: A value is wrong, a folder is missing, an image is unreadable, or the folder
            holds a checkpoint of another probe.
    """
    refuse_made("linear_probe", settings, MADE)
    if not hasattr(backbone, "embed_dim"):
        raise TypeError(
            "the backbone must come from dino.load, or have `embed_dim` "
            f"(got {type(backbone).__name__})"
        )
    data_path = {"data_path": data} if is_path(data) else {}
    keywords = {"output_dir": output_dir, **data_path, **settings}
    config = build(LinearConfig, keywords)
    number_format = check_settings(precision=precision).precision
    splits = open_splits(data)
    with open_frozen_run(config.device, number_format) as run, lend(backbone, run) as trained:
        return evaluate_linear(
            config,
            run,
            recipe=as_recipe(config, keywords),
            backbone=trained,
            splits=splits,
            wrap=lambda module: InFormat(module, run),
        )


def attention(
    backbone: nn.Module,
    images: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    device: str | None = None,
    precision: str | None = None,
) -> list[Tensor]:
    """Compute the self-attention maps of the CLS token in the last block.

    Args:
        backbone: A vision transformer from `load`.
        images: As in `embed`.
        image_size: (H, W) in pixels that each image is resized to, or the length of its shorter
            side. By default an image keeps its size. A partial patch at the right or the bottom is
            cropped.
        device: As in `embed`.
        precision: As in `embed`.

    Returns:
        One (heads, h, w) float32 tensor on the CPU per image, with one value per patch. In each
        head, these values and the one of the CLS token itself sum to 1.

    Raises:
        DataError: An image cannot be read, or is smaller than a patch.
        DeviceError: As in `embed`.
        OptionError: As in `embed`.
        TypeError: The backbone is not a vision transformer of this package.
    """
    if not isinstance(backbone, VisionTransformer):
        raise TypeError(
            f"only vision transformers have attention maps (got {type(backbone).__name__})"
        )
    size = None if image_size is None else check_settings(image_size=image_size).pictures.image_size
    check_size("`image_size`", size)
    settings, source = check_settings(device=device, precision=precision), open_source(images)
    with (
        open_frozen_run(settings.device, settings.precision) as run,
        lend(backbone, run) as trained,
    ):
        reader = AttentionReader(
            patch_size=backbone.patch_size,
            in_chans=trained.in_chans,
            infer=run.device.compile_eval(InFormat(ClsAttention(backbone), run)),
            normalization=build_normalization(trained.in_chans, trained.normalization),
            run=run,
        )
        source = source.ranged(trained.pixel_range)
        views = (
            reader.cut(source.read(i, reader.in_chans), size, source.names[i])
            for i in range(len(source))
        )
        return [reader.read_maps(view[None])[0] for view in views]
