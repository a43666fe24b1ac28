"""The weights published with the paper: names, files, and how a file is found or downloaded."""

from __future__ import annotations

import logging
import os
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dino import checkpoint
from dino.errors import CheckpointError, WeightsError, nearest
from dino.models.config import HUB_PREFIX, BackboneConfig
from dino.models.registry import build_backbone, is_vit
from dino.weights.resample import adapt_input
from dino.weights.validate import NOTHING, check_network, match, validate

logger = logging.getLogger(__name__)

MIRROR = "DINO_WEIGHTS_DIR"
PUBLISHED_ROOT = "https://dl.fbaipublicfiles.com/dino/"
Published = Mapping[tuple[str, int | None], str]  # file by architecture and patch size
# Backbones published with the paper. The files have no known digests.
PUBLISHED: Published = {
    ("vit_small", 16): "dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    ("vit_small", 8): "dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth",
    ("vit_base", 16): "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ("vit_base", 8): "dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
    ("resnet50", None): "dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
    **{
        (arch, None): f"dino_{arch}_pretrain/dino_{arch}_pretrain.pth"
        for size in ("small_12", "medium_24")
        for arch in (f"xcit_{size}_p16", f"xcit_{size}_p8")
    },
}
# The linear classifiers trained on these backbones.
PUBLISHED_LINEAR: Published = {
    key: path.replace("_pretrain.pth", "_linearweights.pth") for key, path in PUBLISHED.items()
}
# Like the original, retrieval prefers weights trained on Google Landmarks v2.
LANDMARKS = "dino_vitsmall16_googlelandmark_pretrain"
PUBLISHED_FOR_RETRIEVAL: Published = {
    **PUBLISHED,
    ("vit_small", 16): f"{LANDMARKS}/{LANDMARKS}.pth",
}
# Names in torch.hub (the original's hubconf.py). The deit names are older names of these networks.
HUB: Mapping[str, tuple[str, int | None]] = {
    "dino_vits16": ("vit_small", 16),
    "dino_deits16": ("vit_small", 16),
    "dino_vits8": ("vit_small", 8),
    "dino_deits8": ("vit_small", 8),
    "dino_vitb16": ("vit_base", 16),
    "dino_vitb8": ("vit_base", 8),
    **{f"dino_{arch}": (arch, patch) for arch, patch in PUBLISHED if patch is None},
}


def find_published(
    backbone: BackboneConfig,
    published: Published = PUBLISHED,
    *,
    remedy: str = "give `pretrained_weights`, or `random_weights`",
) -> Path:
    """Find the published weights in the mirror folder, or download them to torch's hub folder.

    Args:
        backbone: Architecture and patch size.
        published: The files by architecture and patch size.
        remedy: End of the error's remedy, after the mirror folder.

    Raises:
        WeightsError: No weights are published for the architecture, or the download fails.
    """
    patch = backbone.chosen_patch_size if is_vit(backbone.chosen_arch) else None
    arch = backbone.chosen_arch.replace("deit_", "vit_")
    remedy = f"set {MIRROR} to a folder that holds the published files, {remedy}"
    if (arch, patch) not in published:
        named = f"{backbone.chosen_arch} with patch size {patch}" if patch else backbone.chosen_arch
        raise WeightsError(f"no weights are published for {named}: {remedy}")
    url = PUBLISHED_ROOT + published[arch, patch]
    logger.info("the published %s", url)
    name = url.rsplit("/", 1)[1]
    mirrored = find_mirrored(name)
    if mirrored:
        return mirrored
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, urllib.error.URLError) as error:
            raise WeightsError(
                f"{url} cannot be downloaded to {target} ({error}): {remedy}"
            ) from error
    return target


def find_mirrored(*names: str) -> Path | None:
    """Find the first of these files in the user's mirror folder, if any."""
    folder = os.environ.get(MIRROR)
    if not folder:
        return None
    return next((Path(folder) / name for name in names if (Path(folder) / name).is_file()), None)


def read_hub_name(name: str) -> BackboneConfig:
    """Return the architecture and patch size of a name in torch.hub, such as dino_vits16.

    Raises:
        WeightsError: The name is unknown. The message suggests the closest one.
    """
    if name not in HUB:
        raise WeightsError(f"{HUB_PREFIX}{name} is not published: {nearest(name, list(HUB))}")
    arch, patch = HUB[name]
    return (
        BackboneConfig(arch=arch) if patch is None else BackboneConfig(arch=arch, patch_size=patch)
    )


def read_published(path: Path) -> dict[str, Any]:
    """Read a file returned by `find_published`.

    Raises:
        CheckpointError: The file is damaged, for example by an interrupted download.
    """
    try:
        return validate(checkpoint.load_file(path), path)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}", remedy="remove it, and the published file is downloaded again"
        ) from error


def load_published(name: str, *, pretrained: bool = True, **settings: Any) -> nn.Module:
    """Build a backbone by its name in the original's hubconf.py, in training mode.

    Args:
        name: One of `HUB`.
        pretrained: Load the published weights. These files have no known digest, so the check is
            that their tensors match the network's exactly, by name and shape.
        **settings: For `build_backbone`. The weights are adapted to `in_chans` and `img_size`.

    Raises:
        WeightsError: The name is unknown, or the weights cannot be downloaded or do not match.
    """
    named = read_hub_name(name)
    module = build_backbone(named.chosen_arch, patch_size=named.chosen_patch_size, **settings)
    if pretrained:
        path = find_published(named, remedy="or pass pretrained=False")
        stored = check_network(read_published(path), path)
        tensors = adapt_input(
            stored,
            module.state_dict(),
            str(path),
            new_channels="in_chans" in settings,
            new_patches="patch_size" in settings,
        )
        matched = match(module, tensors, str(path), NOTHING)
        module.load_state_dict(matched.tensors)
        count = len(matched.tensors)
        logger.info(
            "%s: %d of %d tensors and no others; the file has no known digest", path, count, count
        )
    return module
