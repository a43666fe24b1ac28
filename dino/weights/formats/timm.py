"""timm's weights: `python -m dino.interop.timm IN OUT.safetensors`, or `timm:NAME OUT.pth`.

timm's names are those of our vision transformers. Letters: B batch, C channels, S side of an image.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from dino.errors import DinoError, WeightsError, nearest
from dino.models.config import TIMM_PREFIX
from dino.weights.config import ConversionConfig
from dino.weights.formats import Contents, Format

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from dino.weights.network import Network

LONGEST_REASON = 300  # characters kept of a message of timm, which names every tensor
ENDING = ".safetensors"
SAME = 1e-4  # largest difference between equal features, relative to the largest feature


@dataclass(frozen=True, kw_only=True)
class TimmConfig(ConversionConfig):
    """Convert weights between this project and timm.

    python -m dino.interop.timm IN OUT.safetensors, or timm:NAME OUT.pth
    """


def name_kind(contents: Contents) -> str:
    """Name weights of timm's hub, or a file of one of its vision transformers."""
    if contents.word.startswith(TIMM_PREFIX):
        return "weights of timm's hub"
    if {"pos_embed", "head.weight"} <= contents.names:
        return "timm, a vision transformer with its classifier"
    is_written_so = contents.word.endswith(ENDING) and "pos_embed" in contents.names
    return "timm, a vision transformer" if is_written_so else ""


def read_timm(word: str) -> dict[str, Any]:
    """Read weights by their name in timm, from the mirror folder or timm's hub.

    The architecture is ours if one of our networks computes the same features.

    Raises:
        OptionError: timm is not installed.
        WeightsError: The name is unknown, or the weights cannot be loaded.
    """
    from dino.models.zoo import open_library
    from dino.weights.hub import find_mirrored

    name = word.removeprefix(TIMM_PREFIX)
    timm = open_library("timm", purpose=f"{TIMM_PREFIX}{name}")
    known = timm.list_models(pretrained=True)
    if not timm.is_model(name) or ("." in name and name not in known):
        raise WeightsError(f"{TIMM_PREFIX}{name} is unknown: {nearest(name, known)}")
    mirrored = find_mirrored(f"{name}{ENDING}", f"{name}.pth")
    model = _build_timm(name, mirrored).eval()
    about = cast(dict[str, Any], model.pretrained_cfg)
    return {
        "state_dict": model.state_dict(),
        "args": find_twin(model, about["input_size"]) or {"arch": f"{TIMM_PREFIX}{name}"},
        "normalisation": {part: list(about[part]) for part in ("mean", "std")},
    }


def _build_timm(name: str, mirrored: Path | None) -> nn.Module:
    """Build a network of timm without its classifier, loaded strictly: the tensors match exactly.

    timm itself is strict only if the number of classes is the one that it registers for the file.
    """
    from dino.models.zoo import open_library
    from dino.weights.hub import MIRROR

    timm = open_library("timm", purpose=f"{TIMM_PREFIX}{name}")
    try:
        if mirrored is None:
            whole = timm.create_model(name, pretrained=True)
            whole.reset_classifier(0)
            backbone: nn.Module = whole
            return backbone
        overlay = {"state_dict": _read_mirrored(name, mirrored), "num_classes": 0}
        built: nn.Module = timm.create_model(
            name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay
        )
        return built
    except DinoError:
        raise
    except Exception as error:  # timm's renaming of old files can raise anything on a foreign file
        reason = phrase_reason(error)
        if mirrored:
            raise WeightsError(
                f"{mirrored} is not {TIMM_PREFIX}{name} ({reason}): replace or remove it"
            ) from error
        remedy = f"set {MIRROR} to a folder that holds {name}{ENDING}, or name a file"
        raise WeightsError(f"{TIMM_PREFIX}{name} cannot be loaded ({reason}): {remedy}") from error


def _read_mirrored(name: str, mirrored: Path) -> dict[str, Tensor]:
    """Read a file of the mirror folder, without the classifier."""
    from dino.weights.read import read_weights, select_network

    tensors = select_network(read_weights(str(mirrored)), "state_dict", mirrored)
    return drop_classifier(name, tensors, mirrored)


def drop_classifier(name: str, tensors: Mapping[str, Tensor], origin: Path) -> dict[str, Tensor]:
    """Return the tensors of timm's network `name` that are not its classifier's.

    Raises:
        WeightsError: There are none.
    """
    from dino import stored
    from dino.models.zoo import open_library

    timm = open_library("timm", purpose=f"{TIMM_PREFIX}{name}")
    left = stored.strip_prefixes(tensors)
    layers = timm.models.get_pretrained_cfg_value(name, "classifier") or ()
    for layer in (layers,) if isinstance(layers, str) else layers:
        for part in ("weight", "bias"):
            left.pop(f"{layer}.{part}", None)
    if not left:  # timm would download the network
        raise WeightsError(f"{origin} holds only a classifier: replace or remove it")
    return left


def phrase_reason(error: Exception) -> str:
    """Shorten a message of timm to a part of one line."""
    return textwrap.shorten(str(error), LONGEST_REASON, placeholder=" ...")


def find_twin(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Any] | None:
    """Find our vision transformer with the same names and shapes that computes the same features.

    Names alone are not enough: some networks of timm have other activations, or use the mean of the
    tokens instead of the CLS token.
    """
    from dino.models.registry import VITS, build_backbone
    from dino.weights.network import count_blocks, is_vision_transformer

    tensors = model.state_dict()
    if not is_vision_transformer(tensors):
        return None
    channels, size, _ = input_size
    patch_size = tensors["patch_embed.proj.weight"].shape[-1]
    sizes = (cast(int, model.num_features), count_blocks(tensors))
    for arch, shape in VITS.items():
        if (shape.embed_dim, shape.depth) == sizes and not shape.conv_stem:
            twin = build_backbone(
                arch, patch_size=patch_size, in_chans=channels, img_size=size
            ).eval()
            if _shapes(twin.state_dict()) == _shapes(tensors):
                twin.load_state_dict(tensors)
                if compute_the_same(twin, model, (1, channels, size, size)):
                    return {
                        "arch": arch,
                        "patch_size": patch_size,
                        "in_chans": channels,
                        "global_crops_size": size,
                    }
    return None


def compute_the_same(one: nn.Module, other: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether two networks compute the same features of an image of shape (1, C, S, S)."""
    import torch

    image = torch.linspace(-2, 2, math.prod(shape)).reshape(shape)
    with torch.inference_mode():
        ours, theirs = one(image), other(image)
    near = ours.shape == theirs.shape and (ours - theirs).abs().max() <= SAME * theirs.abs().max()
    return bool(near)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def write_timm(network: Network, target: Path) -> None:
    """Write a file for `timm.create_model(..., checkpoint_path=...)`, with exactly its tensors.

    Our names are those of timm's vision transformers.

    Raises:
        OptionError: timm does not have the network, or the file cannot be written.
        WeightsError: timm's network has other tensors.
    """
    from safetensors.torch import save

    from dino.files import atomic_write
    from dino.models.registry import list_timm_shapes

    name, settings = name_model(network)
    theirs = list_timm_shapes(name, settings)
    ours = _shapes(network.tensors)
    wrong = sorted(key for key in theirs.keys() | ours.keys() if theirs.get(key) != ours.get(key))
    if wrong:
        raise WeightsError(
            f"timm's {name} has other tensors than {network.origin}: {', '.join(wrong[:10])}"
        )
    tensors = {key: tensor.contiguous() for key, tensor in network.tensors.items()}
    with atomic_write(target, "`file_out`") as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt", "architecture": name}))


def name_model(network: Network) -> tuple[str, dict[str, Any]]:
    """Return the name of a network in timm, and its settings.

    Raises:
        OptionError: timm does not have the network.
        WeightsError: The architecture is unknown.
    """
    from dino.models.registry import describe_in_timm

    if not network.arch:
        raise WeightsError(
            f"{network.origin}: the number of heads is unknown, and timm's network depends on it"
        )
    size = network.grid_size if network.is_plain_vit else network.image_size
    return describe_in_timm(
        network.arch, patch_size=network.patch_size, in_chans=network.in_chans, image_size=size
    )


def phrase_loading(network: Network, target: Path) -> str:
    """Return the line of Python that loads the file."""
    name, settings = name_model(network)
    words = "".join(f", {key}={value!r}" for key, value in settings.items())
    return f"timm.create_model({name!r}, checkpoint_path={str(target)!r}{words})"


FORMAT = Format(
    rank=6,
    prefix=TIMM_PREFIX,
    read=read_timm,
    kind=name_kind,
    config=TimmConfig,
    write=write_timm,
    ending=ENDING,
    tell=phrase_loading,
)
