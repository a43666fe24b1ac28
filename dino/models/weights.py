"""From a weights file to a backbone: ours, the original's, plain state dictionaries, the published ones, others'.

Never silently random: every tensor of the backbone is found, with its shape, or the load is an error that names what
is missing; and every tensor of the file that is left over is named too.
"""

from __future__ import annotations

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.xcit import checkpoint_filter_fn as rename_xcit
from torch import Tensor, nn

from dino import checkpoint
from dino.errors import OptionError, WeightsError
from dino.flags import BackboneFlags, WeightsFlags
from dino.models.adaptation import adapt_input
from dino.models.layouts import BESIDE_AUTOENCODER, BESIDE_VIT, count_blocks, is_vision_transformer, rename_to_ours
from dino.models.multicrop import MultiCrop
from dino.models.published import HUB_PREFIX, PUBLISHED, Published, find_published
from dino.models.registry import VITS, build_backbone, is_vit
from dino.models.weight_files import read_weights, select_network

logger = logging.getLogger(__name__)

DEFAULT_SIZE = 224  # pixels; what weights without options were trained at
MAE = "mae"  # an architecture's name: the ViT of a masked autoencoder's file, which its tensors tell
MAE_NETWORKS = {  # and what its own code calls it (models_mae.py); the tensors tell the patch
    "mae_vit_base_patch16": "vit_base",
    "mae_vit_large_patch16": "vit_large",
    "mae_vit_huge_patch14": "vit_huge",
}
NOTHING = re.compile("(?!)")  # a pattern that no name has
ANYTHING = re.compile("")


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
        WeightsError: No such file, a tensor of the backbone is not in it with its shape, or it has one too many.
        CheckpointError: The file is damaged.
    """
    if weights.random_weights:
        if weights.pretrained_weights:
            raise OptionError("--random_weights and --pretrained_weights contradict each other; give one of them")
        logger.warning("--random_weights: an untrained %s", backbone.arch)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # by itself each process would draw another network
            return _describe({}, {}, backbone, frozenset({"arch", "patch_size"}))
    word = weights.pretrained_weights or str(find_published(backbone, published))
    state = read_weights(word)
    tensors = rename_to_ours(select_network(state, weights.checkpoint_key, word))
    loaded = _describe(state, tensors, backbone, explicit)
    exact = not weights.pretrained_weights or word.startswith(HUB_PREFIX)  # published files hold a backbone alone
    beside = NOTHING if exact else _find_beside(loaded.arch, is_autoencoder(backbone.arch))
    matched = match(loaded.module, tensors, f"{word} ({loaded.arch}, patch size {loaded.patch_size})", beside)
    loaded.module.load_state_dict(matched.tensors)
    logger.info(
        "%s: %d of %d backbone tensors loaded into %s%s",
        *(word, len(matched.tensors), len(matched.tensors), loaded.arch, matched.describe_left()),
    )
    return loaded


@dataclass(frozen=True)
class Matched:
    """What a file's tensors are to a network."""

    tensors: dict[str, Tensor]  # one for each of the network's
    left: tuple[str, ...]  # names of the others

    def describe_left(self) -> str:
        """The names that were not used, counted by their first word, as the end of a line."""
        counts = Counter(name.split(".")[0] for name in self.left)
        named = ", ".join(f"{name} ({count})" for name, count in counts.items())
        return f"; not part of it: {named}" if named else ""


def match(module: nn.Module, tensors: Mapping[str, Tensor], origin: str, beside: re.Pattern[str] = ANYTHING) -> Matched:
    """Find every tensor of a network in a file.

    Args:
        module: The network.
        tensors: The file's, under our names.
        origin: The file, for the error.
        beside: Which tensors the file may have besides.

    Raises:
        WeightsError: Some are missing or have another shape, or there are others; the text lists them.
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
        raise WeightsError(
            f"{origin}: {len(wrong)} of {len(wanted)} backbone tensors do not fit, nothing was loaded: "
            f"{_shorten(wrong)}; check --arch, --patch_size and --checkpoint_key"
        )
    left = tuple(name for name in tensors if name not in wanted)
    foreign = [name for name in left if not beside.match(name)]
    if foreign:
        raise WeightsError(
            f"{origin}: it is another network, with {len(foreign)} tensors that this one has not, nothing was loaded: "
            f"{_shorten(foreign)}; check --arch"
        )
    return Matched({name: tensors[name] for name in wanted}, left)


def is_autoencoder(arch: str) -> bool:
    """Whether the name means the encoder of a masked autoencoder, which only its file describes."""
    return arch == MAE or arch in MAE_NETWORKS


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _find_beside(arch: str, autoencoder: bool) -> re.Pattern[str]:
    """What may lie beside a backbone: a vision transformer without a part of its own computes something else."""
    if autoencoder:
        return BESIDE_AUTOENCODER
    return BESIDE_VIT if is_vit(arch) else ANYTHING


def load_initial_weights(student: MultiCrop, path: str, asked: Iterable[str] = ()) -> Tensor | None:
    """Start a network from a file's teacher: the backbone always, the head where it is there and fits.

    Args:
        student: Filled in place; position embeddings of another size are resampled.
        path: What `read_weights` takes.
        asked: Flags that the user set: only these let the first layer be fitted to other channels or patches.

    Returns:
        The file's centre (1, K) where the head was loaded, else None.

    Raises:
        WeightsError: A tensor of the backbone is not in the file with its shape.
        CheckpointError: The file is missing or damaged.
    """
    state = read_weights(path)
    network = select_network(state, "teacher", path)
    backbone = adapt_input(rename_to_ours(network), student.backbone.state_dict(), frozenset(asked), path)
    beside = BESIDE_VIT if is_vision_transformer(backbone) else ANYTHING
    matched = match(student.backbone, backbone, path, beside)
    student.backbone.load_state_dict(matched.tensors)
    tensors = {name.removeprefix("module."): value for name, value in network.items()}
    head = {name.removeprefix("head."): value for name, value in tensors.items() if name.startswith("head.")}
    fits = {name: value.shape for name, value in head.items()} == {
        n: v.shape for n, v in student.head.state_dict().items()
    }
    count, rest = len(matched.tensors), " and the head" if fits else "; the head starts anew"
    logger.info("--init_from %s: %d of %d backbone tensors%s", path, count, count, rest)
    if not fits:
        return None
    student.head.load_state_dict(head)
    centre = state.get("dino_loss", {}).get("center")
    return centre


def _describe(
    state: Mapping[str, Any], tensors: Mapping[str, Tensor], flags: BackboneFlags, explicit: frozenset[str]
) -> TrainedBackbone:
    """Build the empty backbone that the file and the flags describe."""
    args = checkpoint.read_args(state)
    guessed = _guess(tensors)
    known = {**vars(flags), **guessed, **{name: args[name] for name in vars(flags) if name in args}}
    known |= {name: value for name, value in vars(flags).items() if name in explicit}
    if is_autoencoder(known["arch"]):
        known["arch"] = MAE_NETWORKS.get(known["arch"], _name_autoencoder(guessed))
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
    if not is_vision_transformer(tensors):
        return {}
    convs = [tensor for name, tensor in tensors.items() if name.startswith("patch_embed.") and tensor.ndim == 4]
    dim, in_chans = convs[-1].shape[0], convs[0].shape[1]
    patch_size = convs[-1].shape[-1] << (len(convs) - 1)  # each convolution of a stem halves the side
    depth = count_blocks(tensors)
    arch = next((name for name, shape in VITS.items() if (shape.embed_dim, shape.depth) == (dim, depth)), None)
    image_size = math.isqrt(tensors["pos_embed"].shape[1] - 1) * patch_size
    found = {"patch_size": patch_size, "in_chans": in_chans, "image_size": image_size}
    return found | ({"arch": arch} if arch else {})


def _name_autoencoder(guessed: Mapping[str, Any]) -> str:
    """Which of our vision transformers the encoder is."""
    if "arch" not in guessed:
        raise WeightsError(f"--arch {MAE} wants --pretrained_weights with the encoder of a masked autoencoder (a ViT)")
    return guessed["arch"]
