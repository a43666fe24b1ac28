"""What `pretrained_weights` can name, read to one form: a dictionary of networks, options and tensors.

Nothing is executed: torch's files are read with its safe unpickler, Paddle's with our own, safetensors and Hugging
Face's folders have no code in them.
"""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from dino import checkpoint
from dino.errors import CheckpointError, DinoError, WeightsError, nearest
from dino.models.arrival import admit
from dino.models.layouts import (
    count_blocks,
    is_ipu,
    is_vision_transformer,
    rename_to_ours,
    split_ipu,
    transpose_linear,
)
from dino.models.paddle import read_paddle
from dino.models.published import HUB_PREFIX, MIRROR, find_mirrored, find_published, read_hub_name, read_published
from dino.models.registry import TIMM_PREFIX, VITS, build_backbone
from dino.models.vit import LAYER_NORM_EPS
from dino.models.zoo import open_library

logger = logging.getLogger(__name__)

NETWORKS = ("state_dict", "model")  # where files of other projects hold the network; model is the autoencoder's
HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
HF_FIXED = {"model_type": "vit", "hidden_act": "gelu", "qkv_bias": True}
HF_EPS = 1e-12  # layer_norm_eps that transformers writes where nobody chose one, for weights trained with 1e-6 as well
HF_DEFAULTS = {  # of transformers' ViTConfig
    **{"hidden_act": "gelu", "layer_norm_eps": HF_EPS, "qkv_bias": True},
    **{"image_size": 224, "patch_size": 16, "num_channels": 3},
}
PADDLE = ".pdparams"
SAFETENSORS = ".safetensors"
LONGEST_REASON = 300  # characters of what timm says, which names every tensor
SAME = 1e-4  # largest difference of two networks' features, relative to the largest feature, for them to be the same


def read_weights(word: str) -> dict[str, Any]:
    """Read what `pretrained_weights` or `init_from` names.

    Args:
        word: A checkpoint or weights file of torch, `.safetensors`, `.pdparams`, a Hugging Face folder, `hub:NAME` or
            `timm:NAME`.

    Returns:
        What the file holds. Files that hold one network without saying which have it at the top or under
        `state_dict`, and what is known about it under `args` and `normalisation`, as our checkpoints do.

    Raises:
        CheckpointError: The file is missing or damaged, or holds more than tensors and plain values.
        WeightsError: No such name, or it cannot be downloaded.
    """
    return admit(_read(word), word)


def _read(word: str) -> dict[str, Any]:
    if word.startswith(HUB_PREFIX):
        return _read_hub(word.removeprefix(HUB_PREFIX))
    if word.startswith(TIMM_PREFIX):
        return _read_timm(word.removeprefix(TIMM_PREFIX))
    path = Path(word)
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == SAFETENSORS:
        return _read_safetensors(path)
    if path.suffix == PADDLE:
        return _read_pdparams(path)
    return checkpoint.load_file(path)


def select_network(state: Mapping[str, Any], key: str, path: Path | str) -> Mapping[str, Tensor]:
    """One network's tensors: `state[key]` of a checkpoint, what other projects call it, or the file itself.

    Only the teacher, which is what is meant where nothing is said, is looked for under other names.

    Raises:
        WeightsError: Neither.
    """
    found = state.get(key)
    if isinstance(found, Mapping):
        return found
    named = key not in ("teacher", *NETWORKS)
    for name in NETWORKS:
        if isinstance(state.get(name), Mapping) and (is_ipu(state[name]) or not named):
            networks = split_ipu(state[name]) if is_ipu(state[name]) else {key: state[name]}
            if key in networks:
                return networks[key]
    if state and not named and all(isinstance(value, Tensor) for value in state.values()):
        return state
    held = textwrap.shorten(", ".join(map(str, state)), LONGEST_REASON, placeholder=" ...")
    raise WeightsError(f"{path} has no network {key!r}", remedy=f"it holds {held}: set or drop `checkpoint_key`")


def _read_hub(name: str) -> dict[str, Any]:
    named = read_hub_name(name)
    path = find_published(named, remedy="or name a file instead")
    return {
        "state_dict": read_published(path),
        "args": {"arch": named.chosen_arch, "patch_size": named.chosen_patch_size},
    }


def _read_timm(name: str) -> dict[str, Any]:
    """Weights by their name in timm, from the mirror folder or timm's hub; for our own network where it is the same."""
    timm = open_library("timm", purpose=f"{TIMM_PREFIX}{name}")
    known = timm.list_models(pretrained=True)
    if not timm.is_model(name) or ("." in name and name not in known):
        raise WeightsError(f"{TIMM_PREFIX}{name} is unknown: {nearest(name, known)}")
    mirrored = find_mirrored(f"{name}{SAFETENSORS}", f"{name}.pth")
    model = _build_timm(name, mirrored).eval()
    about = cast(dict[str, Any], model.pretrained_cfg)
    return {
        "state_dict": model.state_dict(),
        "args": _find_twin(model, about["input_size"]) or {"arch": f"{TIMM_PREFIX}{name}"},
        "normalisation": {part: list(about[part]) for part in ("mean", "std")},
    }


def _build_timm(name: str, mirrored: Path | None) -> nn.Module:
    """A network of timm without its classifier, filled strictly: every tensor is in the file, and no other.

    timm itself is strict where the number of classes is the one that it knows of the file, and only there.
    """
    timm = open_library("timm", purpose=f"{TIMM_PREFIX}{name}")
    try:
        if mirrored is None:
            whole = timm.create_model(name, pretrained=True)
            whole.reset_classifier(0)
            backbone: nn.Module = whole
            return backbone
        tensors = checkpoint.strip_prefixes(select_network(read_weights(str(mirrored)), "state_dict", mirrored))
        layers = timm.models.get_pretrained_cfg_value(name, "classifier") or ()
        for layer in (layers,) if isinstance(layers, str) else layers:
            for part in ("weight", "bias"):
                tensors.pop(f"{layer}.{part}", None)
        if not tensors:  # timm would go and download the network
            raise WeightsError(f"{mirrored} holds a classifier alone: replace or remove it")
        overlay = {"state_dict": tensors, "num_classes": 0}
        mended: nn.Module = timm.create_model(name, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
        return mended
    except DinoError:
        raise
    except Exception as error:  # timm's renaming of old files raises anything on a foreign one
        reason = textwrap.shorten(str(error), LONGEST_REASON, placeholder=" ...")
        if mirrored:
            raise WeightsError(f"{mirrored} is not {TIMM_PREFIX}{name} ({reason}): replace or remove it") from error
        remedy = f"set {MIRROR} to a folder that holds {name}{SAFETENSORS}, or name a file"
        raise WeightsError(f"{TIMM_PREFIX}{name} cannot be had ({reason}): {remedy}") from error


def _find_twin(model: nn.Module, input_size: tuple[int, int, int]) -> dict[str, Any] | None:
    """Our vision transformer of the same names and shapes, if it computes the same features of an image.

    Names alone do not tell: timm has networks with other activations, or the mean of the tokens for the CLS token.
    """
    tensors = model.state_dict()
    if not is_vision_transformer(tensors):
        return None
    channels, size, _ = input_size
    patch_size = tensors["patch_embed.proj.weight"].shape[-1]
    sizes = (cast(int, model.num_features), count_blocks(tensors))
    for arch, shape in VITS.items():
        if (shape.embed_dim, shape.depth) == sizes and not shape.conv_stem:
            twin = build_backbone(arch, patch_size=patch_size, in_chans=channels, img_size=size).eval()
            if _shapes(twin.state_dict()) == _shapes(tensors):
                twin.load_state_dict(tensors)
                image = torch.linspace(-2, 2, channels * size * size).reshape(1, channels, size, size)
                with torch.inference_mode():
                    ours, theirs = twin(image), model(image)
                if (ours - theirs).abs().max() <= SAME * theirs.abs().max():
                    return {"arch": arch, "patch_size": patch_size, "in_chans": channels, "global_crops_size": size}
    return None


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return {"state_dict": load_safetensors(path)}
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} does not exist") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_pdparams(path: Path) -> dict[str, Any]:
    """Paddle writes a pickle, or (from 3.0 on, if asked to) safetensors under the same ending."""
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    state = _read_safetensors(path) if start[8:] == b"{" else read_paddle(path)
    networks = {name: transpose_linear(value) if isinstance(value, dict) else value for name, value in state.items()}
    return transpose_linear(networks)


def _read_folder(path: Path) -> dict[str, Any]:
    """A folder of Hugging Face: config.json, the weights, and, if there, how images are normalized."""
    config = {**HF_DEFAULTS, **_read_json(path / "config.json")}
    wanted = {**HF_FIXED, "layer_norm_eps": LAYER_NORM_EPS}
    if config["layer_norm_eps"] == HF_EPS:
        logger.info("%s: layer_norm_eps %g, transformers' default; computed with %g", path, HF_EPS, LAYER_NORM_EPS)
        wanted["layer_norm_eps"] = HF_EPS
    other = [f"{name} {config.get(name)!r}, wants {own!r}" for name, own in wanted.items() if config.get(name) != own]
    if other:
        raise WeightsError(f"{path} is another network than this project's ViT: {'; '.join(other)}")
    file = next((path / name for name in HF_WEIGHTS if (path / name).is_file()), None)
    if file is None:
        raise CheckpointError(f"{path} holds none of {', '.join(HF_WEIGHTS)}")
    about = _read_json(path / "preprocessor_config.json") if (path / "preprocessor_config.json").exists() else {}
    normalization = {"mean": about.get("image_mean"), "std": about.get("image_std")}
    tensors = select_network(read_weights(str(file)), "state_dict", file)
    return {
        "state_dict": tensors,
        "args": {"arch": _find_arch(config, path), "image_size": _check_input(config, tensors, path)},
        "normalisation": normalization if all(normalization.values()) else None,
    }


def _check_input(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> list[int]:
    """Height and width that a configuration of transformers says, if its tensors are of that size, patch and channels.

    Raises:
        WeightsError: They are of others.
    """
    ours = rename_to_ours(tensors)
    if not is_vision_transformer(ours):
        return []  # what is missing is listed later
    size, patch, channels = (config[name] for name in ("image_size", "patch_size", "num_channels"))
    height, width = sides = list(size) if isinstance(size, list) and len(size) == 2 else [size, size]
    try:
        said = (channels, patch, patch), 1 + (height // patch) * (width // patch)
    except (TypeError, ZeroDivisionError) as error:
        raise WeightsError(f"{path}: image_size {size!r} and patch_size {patch!r} are no numbers of pixels") from error
    position = ours["pos_embed"]
    found = tuple(ours["patch_embed.proj.weight"].shape[1:]), position.shape[1] if position.ndim == 3 else 0
    if said != found:
        raise WeightsError(
            f"{path}: image_size {size}, patch_size {patch}, num_channels {channels} of "
            f"config.json mean a projection of {said[0]} and {said[1]} positions",
            remedy=f"its tensors have {found[0]} and {found[1]}: mend config.json",
        )
    return sides


def _find_arch(config: Mapping[str, Any], path: Path) -> str:
    """Our name of the network that a configuration of transformers' ViT describes; tensors do not tell its heads."""
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    wanted = tuple(config.get(name) for name in names)
    for arch, shape in VITS.items():
        if wanted == (shape.embed_dim, shape.depth, shape.heads, int(shape.embed_dim * shape.mlp_ratio)):
            return arch
    named = ", ".join(f"{name} {value}" for name, value in zip(names, wanted, strict=True))
    raise WeightsError(f"{path}: no architecture of this project has {named}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, wants a dictionary")
    return content
