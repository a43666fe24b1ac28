"""From a weights file to a backbone: ours, the original's, plain state dictionaries, the published ones.

Never silently random: every tensor of the backbone is found, with its shape, or the load is an error that names what
is missing.
"""

from __future__ import annotations

import logging
import math
import os
import urllib.error
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.xcit import checkpoint_filter_fn as rename_xcit
from torch import Tensor, nn

from dino import checkpoint
from dino.errors import OptionError, WeightsError
from dino.flags import BackboneFlags, WeightsFlags
from dino.models.multicrop import MultiCrop
from dino.models.registry import VITS, build_backbone, is_vit

logger = logging.getLogger(__name__)

MIRROR = "DINO_WEIGHTS_DIR"
PUBLISHED_ROOT = "https://dl.fbaipublicfiles.com/dino/"
Published = Mapping[tuple[str, int | None], str]  # file by architecture and patch size
# Backbones published with the paper; no digests of the files are known.
PUBLISHED: Published = {
    ("vit_small", 16): "dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth",
    ("vit_small", 8): "dino_deitsmall8_pretrain/dino_deitsmall8_pretrain.pth",
    ("vit_base", 16): "dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
    ("vit_base", 8): "dino_vitbase8_pretrain/dino_vitbase8_pretrain.pth",
    ("resnet50", None): "dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
    ("xcit_small_12_p16", None): "dino_xcit_small_12_p16_pretrain/dino_xcit_small_12_p16_pretrain.pth",
    ("xcit_small_12_p8", None): "dino_xcit_small_12_p8_pretrain/dino_xcit_small_12_p8_pretrain.pth",
    ("xcit_medium_24_p16", None): "dino_xcit_medium_24_p16_pretrain/dino_xcit_medium_24_p16_pretrain.pth",
    ("xcit_medium_24_p8", None): "dino_xcit_medium_24_p8_pretrain/dino_xcit_medium_24_p8_pretrain.pth",
}
# The linear classifiers that were trained on them.
PUBLISHED_LINEAR: Published = {
    key: path.replace("_pretrain.pth", "_linearweights.pth") for key, path in PUBLISHED.items()
}
# Retrieval takes weights trained on Google Landmarks v2 where there are any, as the original does.
PUBLISHED_FOR_RETRIEVAL: Published = {
    **PUBLISHED,
    ("vit_small", 16): "dino_vitsmall16_googlelandmark_pretrain/dino_vitsmall16_googlelandmark_pretrain.pth",
}
DEFAULT_SIZE = 224  # pixels; what weights without options were trained at
MAE = "mae"  # an architecture's name: the ViT of a masked autoencoder's file, which its tensors tell
NETWORK_KEYS = ("state_dict", "model")  # where files of other projects hold the network; model is the autoencoder's


@dataclass(frozen=True, kw_only=True)
class TrainedBackbone:
    """A backbone and what its file says about how to feed it.

    Attributes:
        module: (B, C, S, S) float32, normalised -> (B, D); in eval mode, on the host.
        arch: Architecture.
        patch_size: In pixels; of no meaning but for a ViT.
        image_size: S, side in pixels of the global crops it was trained on.
        in_chans: C.
        normalisation: {"mean": ..., "std": ...}, C numbers each, or None where the file does not say.
    """

    module: nn.Module
    arch: str
    patch_size: int
    image_size: int
    in_chans: int
    normalisation: Mapping[str, list[float]] | None


def load_backbone(
    backbone: BackboneFlags, weights: WeightsFlags, explicit: frozenset[str], *, published: Published = PUBLISHED
) -> TrainedBackbone:
    """Load the backbone that the flags mean.

    Architecture, patch size, channels and image size come from the flags where given, else from the file's options,
    else from its tensors.

    Args:
        backbone: `--arch` and `--patch_size`.
        weights: Which file and network, or `--random_weights`.
        explicit: Flags that the user set.
        published: What is taken without a file.

    Raises:
        WeightsError: No such file, or a tensor of the backbone is not in it with its shape.
        CheckpointError: The file is damaged.
    """
    if weights.random_weights:
        if weights.pretrained_weights:
            raise OptionError("--random_weights and --pretrained_weights contradict each other; give one of them")
        logger.warning("--random_weights: an untrained %s", backbone.arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # by itself each process would draw another network
            return _describe({}, {}, backbone, frozenset({"arch", "patch_size"}))
    path = Path(weights.pretrained_weights) if weights.pretrained_weights else find_published(backbone, published)
    state = checkpoint.load_file(path)
    tensors = checkpoint.strip_prefixes(select_network(state, weights.checkpoint_key, path))
    loaded = _describe(state, tensors, backbone, explicit)
    count = fill(loaded.module, tensors, f"{path} ({loaded.arch}, patch size {loaded.patch_size})")
    logger.info("%s: %d of %d backbone tensors loaded into %s", path, count, count, loaded.arch)
    return loaded


def select_network(state: Mapping[str, Any], key: str, path: Path | str) -> Mapping[str, Tensor]:
    """One network's tensors: `state[key]` of a checkpoint, what other projects call it, or the file itself.

    Raises:
        WeightsError: Neither.
    """
    if isinstance(state.get(key), Mapping):
        return state[key]
    for name in NETWORK_KEYS:
        if isinstance(state.get(name), Mapping):
            return state[name]
    if state and all(isinstance(value, Tensor) for value in state.values()):
        return state
    raise WeightsError(f"{path} has no network {key!r}; it holds {', '.join(map(str, state))}: set --checkpoint_key")


def fill(module: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> int:
    """Load every tensor of `module`; gives their number.

    Raises:
        WeightsError: Some are missing or have another shape; the text lists them.
    """
    wanted = module.state_dict()
    if not wanted.keys() <= tensors.keys() and any("cls_attn_blocks" in name for name in wanted):
        tensors = rename_xcit(dict(tensors), module)
    wrong = [
        f"{name} ({'missing' if name not in tensors else f'{tuple(tensors[name].shape)}, wants {tuple(own.shape)}'})"
        for name, own in wanted.items()
        if name not in tensors or tensors[name].shape != own.shape
    ]
    if wrong:
        more = f" and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise WeightsError(
            f"{origin}: {len(wrong)} of {len(wanted)} backbone tensors do not fit, nothing was loaded: "
            f"{', '.join(wrong[:10])}{more}; check --arch, --patch_size and --checkpoint_key"
        )
    module.load_state_dict({name: tensors[name] for name in wanted})
    return len(wanted)


def find_published(
    backbone: BackboneFlags,
    published: Published = PUBLISHED,
    *,
    remedy: str = "give --pretrained_weights, or --random_weights",
) -> Path:
    """The published weights of an architecture: from the mirror folder, else downloaded to torch's hub folder.

    Args:
        backbone: Architecture and patch size.
        published: Which files, by architecture and patch size.
        remedy: What to do where they cannot be had, besides the mirror folder.

    Raises:
        WeightsError: None are published for it, or they cannot be had.
    """
    patch = backbone.patch_size if is_vit(backbone.arch) else None
    arch = backbone.arch.replace("deit_", "vit_")
    remedy = f"set {MIRROR} to a folder that holds the published files, {remedy}"
    if (arch, patch) not in published:
        named = f"{backbone.arch} with patch size {patch}" if patch else backbone.arch
        raise WeightsError(f"no weights are published for {named}: {remedy}")
    url = PUBLISHED_ROOT + published[arch, patch]
    logger.info("no file is named: the published %s", url)
    name = url.rsplit("/", 1)[1]
    if MIRROR in os.environ and (Path(os.environ[MIRROR]) / name).exists():
        return Path(os.environ[MIRROR]) / name
    target = Path(torch.hub.get_dir()) / "checkpoints" / name
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(target), progress=False)
        except (OSError, urllib.error.URLError) as error:
            raise WeightsError(f"{url} cannot be downloaded to {target} ({error}): {remedy}") from error
    return target


def load_initial_weights(student: MultiCrop, path: str) -> Tensor | None:
    """Start a network from a file's teacher: the backbone always, the head where it is there and fits.

    Args:
        student: Filled in place; position embeddings of another size are resampled.
        path: A checkpoint or weights file.

    Returns:
        The file's centre (1, K) where the head was loaded, else None.

    Raises:
        WeightsError: A tensor of the backbone is not in the file with its shape.
        CheckpointError: The file is missing or damaged.
    """
    state = checkpoint.load_file(path)
    tensors = {name.removeprefix("module."): value for name, value in select_network(state, "teacher", path).items()}
    backbone = checkpoint.strip_prefixes(tensors)
    own = student.backbone.state_dict()
    if "pos_embed" in own and "pos_embed" in backbone:
        backbone["pos_embed"] = resample_position(backbone["pos_embed"], own["pos_embed"].shape[1])
    count = fill(student.backbone, backbone, path)
    head = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    fits = {name: value.shape for name, value in head.items()} == {
        n: v.shape for n, v in student.head.state_dict().items()
    }
    logger.info(
        "--init_from %s: %d backbone tensors%s", path, count, " and the head" if fits else "; the head starts anew"
    )
    if not fits:
        return None
    student.head.load_state_dict(head)
    centre = state.get("dino_loss", {}).get("center")
    return centre


def resample_position(embedding: Tensor, tokens: int) -> Tensor:
    """Bicubic position embedding of another square grid: (1, 1 + n, D) -> (1, tokens, D)."""
    if embedding.shape[1] == tokens:
        return embedding
    old, new = math.isqrt(embedding.shape[1] - 1), math.isqrt(tokens - 1)
    grid = embedding[:, 1:].unflatten(1, (old, old)).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic")
    return torch.cat([embedding[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def _describe(
    state: Mapping[str, Any], tensors: Mapping[str, Tensor], flags: BackboneFlags, explicit: frozenset[str]
) -> TrainedBackbone:
    """Build the empty backbone that the file and the flags describe."""
    args = checkpoint.read_args(state)
    guessed = _guess(tensors)
    known = {**vars(flags), **guessed, **{name: args[name] for name in vars(flags) if name in args}}
    known |= {name: value for name, value in vars(flags).items() if name in explicit}
    if known["arch"] == MAE:
        known["arch"] = _name_autoencoder(guessed)
    in_chans = int(args.get("in_chans", guessed.get("in_chans", 3)))
    image_size = int(args.get("global_crops_size", guessed.get("image_size", DEFAULT_SIZE)))
    module = build_backbone(
        known["arch"], patch_size=known["patch_size"], in_chans=in_chans, img_size=guessed.get("image_size", image_size)
    )
    return TrainedBackbone(
        module=module.eval(),
        arch=known["arch"],
        patch_size=known["patch_size"],
        image_size=image_size,
        in_chans=in_chans,
        normalisation=state.get("normalisation"),
    )


def _guess(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the tensors of one of our vision transformers tell about it; nothing for other networks."""
    if not {"pos_embed", "patch_embed.proj.weight"} <= tensors.keys():
        return {}
    convs = [tensor for name, tensor in tensors.items() if name.startswith("patch_embed.") and tensor.ndim == 4]
    dim, in_chans = convs[-1].shape[0], convs[0].shape[1]
    patch_size = convs[-1].shape[-1] << (len(convs) - 1)  # each convolution of a stem halves the side
    depth = len({name.split(".")[1] for name in tensors if name.startswith("blocks.")})
    arch = next((name for name, shape in VITS.items() if (shape.embed_dim, shape.depth) == (dim, depth)), None)
    image_size = math.isqrt(tensors["pos_embed"].shape[1] - 1) * patch_size
    found = {"patch_size": patch_size, "in_chans": in_chans, "image_size": image_size}
    return found | ({"arch": arch} if arch else {})


def _name_autoencoder(guessed: Mapping[str, Any]) -> str:
    """Which of our vision transformers the encoder is."""
    if "arch" not in guessed:
        raise WeightsError(f"--arch {MAE} wants --pretrained_weights with the encoder of a masked autoencoder (a ViT)")
    return guessed["arch"]
