"""What is classified, and by which frozen features; and the files of linear layers that belong to them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from dino import checkpoint
from dino.config import chosen
from dino.data.image_source import ImageSource
from dino.data.loaders import check_count
from dino.data.sources import open_labelled_splits, open_validation_images
from dino.errors import CheckpointError, OptionError, WeightsError
from dino.evaluation.config import LinearConfig
from dino.evaluation.descriptors import LastBlocks
from dino.evaluation.features import LoaderConfig
from dino.evaluation.linear.head import LinearHead
from dino.evaluation.runner import Runner
from dino.models.registry import is_vit, width_of
from dino.models.vit import VisionTransformer
from dino.weights.hub import read_published
from dino.weights.load import TrainedBackbone
from dino.weights.validate import admit, list_tensors, read_part

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pth.tar"  # the original's name
BEST = "checkpoint_best.pth.tar"  # the same of the epoch with the best top-1
# What is known by a digest only, and what to say where it differs.
OTHERS = {
    "backbone": "another backbone",
    "classes": "other class folders",
    "images": "other images",
}
SETTINGS = (
    "n_last_blocks",
    "avgpool_patchtokens",
)  # a layer trained with another value of these is another layer


@dataclass(frozen=True, kw_only=True)
class LinearTask:
    """What is classified, and by what.

    Attributes:
        descriptor: The frozen backbone as a descriptor, (B, C, S, S) -> (B, D).
        train: Images to learn from; None where a layer is only scored.
        test: Images to score on.
        reading: How images are fed.
        identity: What a layer belongs to: settings, digest of the backbone and, to continue a run, of its images.
    """

    descriptor: TrainedBackbone
    train: ImageSource | None
    test: ImageSource
    reading: LoaderConfig
    identity: Mapping[str, Any]

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return len(self.test.classes)

    @property
    def width(self) -> int:
        """Width D of a feature."""
        return width_of(self.descriptor.module)


def open_task(
    config: LinearConfig,
    runner: Runner,
    *,
    backbone: TrainedBackbone | None = None,
    splits: tuple[ImageSource, ImageSource] | None = None,
) -> LinearTask:
    """List the images and load the backbone, where they are not given.

    Raises:
        DinoError: Missing folders or weights, too few images, or another number of classes than asked for.
    """
    probe, train = config.linear, None
    processes = runner.run.processes
    with processes.rank_zero_first():
        if splits is not None:
            train, test = splits
        elif probe.evaluate:
            test = open_validation_images(config.data.data_path)
        else:
            train, test = open_labelled_splits(config.data.data_path)
        if probe.evaluate:
            train = None
        if train is not None:
            train = train.limited(config.limit.data_limit)
            check_count(train, config.data.batch_size_per_device * processes.world_size)
        if probe.num_labels not in {None, len(test.classes)}:
            raise OptionError(
                f"`num_labels` {probe.num_labels}: {test.root} holds {len(test.classes)} class folders",
                value=probe.num_labels,
                remedy="leave the flag out to follow the folders",
            )
    backbone = backbone or runner.load_backbone()
    identity: dict[str, Any] = {
        "backbone": compute_digest(backbone.module),
        "classes": digest_names(test.classes),
    }
    if is_vit(backbone.arch):
        identity |= {name: chosen(probe, name) for name in SETTINGS}
    if train is not None:
        identity |= {
            "images": train.fingerprint(),
            "seed": config.run.seed,
            "cache_features": probe.cache_features,
        }
    descriptor = build_descriptor(backbone, config)
    return LinearTask(
        descriptor=descriptor, train=train, test=test, reading=runner.reading, identity=identity
    )


def build_descriptor(backbone: TrainedBackbone, config: LinearConfig) -> TrainedBackbone:
    """The backbone as the settings describe an image by it; a network that is no ViT gives its plain features.

    Raises:
        OptionError: More blocks than the network has.
    """
    probe, network = config.linear, backbone.module
    if not isinstance(network, VisionTransformer):
        for name in sorted(name for name in SETTINGS if getattr(probe, name) is not None):
            logger.warning(
                "`%s` is of no meaning for %s, whose features are taken as they are",
                name,
                backbone.arch,
            )
        return backbone
    depth = len(network.blocks)
    blocks = int(chosen(probe, "n_last_blocks"))
    if blocks > depth:
        raise OptionError(
            f"`n_last_blocks` {blocks}: {backbone.arch} has {depth}",
            value=blocks,
            remedy="give that or fewer",
        )
    module = LastBlocks(network, blocks=blocks, average_patches=bool(probe.avgpool_patchtokens))
    return replace(backbone, module=module.eval())


def compute_digest(module: nn.Module) -> str:
    """A digest of a network's weights on the host, equal for equal weights whatever file they came from."""
    found = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        found.update(name.encode())
        found.update(tensor.contiguous().numpy().data)
    return found.hexdigest()[:16]


def digest_names(names: Sequence[str]) -> str:
    """A digest of class names in their order."""
    return hashlib.sha256("\n".join(names).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def load_head(
    head: LinearHead, path: Path, identity: Mapping[str, Any], *, published: bool = False
) -> dict[str, Any]:
    """Fill a head from a file: ours, the original's or a published one; gives all that the file holds.

    Args:
        head: Filled in place.
        path: The file.
        identity: The task's; files that are not ours say nothing to compare it with.
        published: Whether `find_published` found the file.

    Raises:
        WeightsError: The layer is missing or of another shape.
        CheckpointError: The file is missing or damaged, or was trained on something else.
    """
    state = read_published(path) if published else admit(checkpoint.load_file(path), path)
    tensors = list_tensors(state, path)
    for name, own in head.state_dict().items():
        if name not in tensors:
            raise WeightsError(
                f"{path} holds no linear layer ({name} is missing)",
                remedy=f"eval_linear.py writes {CHECKPOINT}",
            )
        if tensors[name].shape != own.shape:
            raise WeightsError(
                f"{path}: {name} is {tuple(tensors[name].shape)}, these classes and features want {tuple(own.shape)}",
                remedy="check `data_path`, `arch`, `n_last_blocks` and `avgpool_patchtokens`",
            )
    then = read_part(state, "identity", path)
    for name, now in identity.items():
        if name in then and then[name] != now:
            other = OTHERS.get(name, f"`{name}` {then[name]}, not {now}")
            raise CheckpointError(
                f"{path} was trained with {other}",
                remedy="use those again, or another file or `output_dir`",
            )
    head.load_state_dict({name: tensors[name] for name in head.state_dict()})
    logger.info(
        "linear layer: %s%s", path, "" if then else ", which does not say what it belongs to"
    )
    return state
