"""Folders that timm writes (`save_for_hf`, `push_to_hf_hub`): config.json and the weights.

Only known settings of config.json reach timm, and a network is built only if the file's tensors are
exactly its own, so that neither executes anything or takes more memory than the file does.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.errors import CheckpointError, DinoError, WeightsError, nearest
from dino.models.config import TIMM_PREFIX
from dino.weights.formats import Contents, Format

if TYPE_CHECKING:
    from torch import Tensor, nn

    from dino.weights.network import Network

CONFIG = "config.json"
# Settings of a network that are read; `num_classes` is not needed, because the classifier is not.
NUMBERS = ("img_size", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio")
OTHERS = {"global_pool": str, "dynamic_img_size": bool, "num_classes": int}
MOST = 2048  # of each number: pixels, channels, width, blocks
DEFAULT_INPUT = [3, 224, 224]  # channels, height and width


def is_timm_folder(path: Path) -> bool:
    """Whether it is a folder whose config.json names an architecture as timm does."""
    from dino.weights.hugging_face_files import read_json

    if not (path / CONFIG).is_file():
        return False
    try:
        return isinstance(read_json(path / CONFIG).get("architecture"), str)
    except CheckpointError:
        return False


def name_kind(contents: Contents) -> str:
    """Name such a folder."""
    return "timm, a folder for Hugging Face" if is_timm_folder(Path(contents.word)) else ""


def read_folder(word: str) -> dict[str, Any]:
    """Read config.json and the weights, without the classifier.

    The architecture is ours if one of our networks computes the same features, as for `timm:NAME`.

    Raises:
        CheckpointError: A file is missing or damaged.
        OptionError: timm is not installed.
        WeightsError: timm has no such network, or the weights are not this network's.
    """
    from dino.weights.formats.timm import find_twin
    from dino.weights.hugging_face_files import read_json, read_tensors

    path = Path(word)
    config = read_json(path / CONFIG)
    name, about = config["architecture"], config.get("pretrained_cfg", config)
    if not isinstance(about, dict):
        raise CheckpointError(f"{path / CONFIG}: its pretrained_cfg must be a dictionary")
    settings = _read_settings(config, path)
    shape = channels, height, width = _find_input(settings, about, path)
    with _in_one_line(path):
        model = _build(name, settings, read_tensors(path), path)
        args = find_twin(model, shape) if height == width else None
        if args is None:
            _check_default(model, name, shape, path)
            args = {"arch": f"{TIMM_PREFIX}{name}", "in_chans": channels}
    normalization = {part: about.get(part) for part in ("mean", "std")}
    return {
        "state_dict": model.state_dict(),
        "args": {"global_crops_size": height, **args},
        "normalisation": normalization if all(normalization.values()) else None,
    }


@contextlib.contextmanager
def _in_one_line(path: Path) -> Iterator[None]:
    """Make whatever timm says to a stranger's settings or sizes an error of weights."""
    from dino.weights.formats.timm import phrase_reason

    try:
        yield
    except DinoError:
        raise
    except Exception as error:
        raise WeightsError(
            f"{path / CONFIG}: its network cannot be built or run ({phrase_reason(error)})"
        ) from error


def _read_settings(config: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of the network in config.json, without those that only training needs."""
    held = config.get("model_args") or {}
    if not isinstance(held, dict):
        raise CheckpointError(f"{path / CONFIG}: its model_args must be a dictionary")
    settings = {name: value for name, value in held.items() if not name.endswith("_rate")}
    for name, value in settings.items():
        if not (_is_size(value) if name in NUMBERS else type(value) is OTHERS.get(name)):
            raise WeightsError(
                f"{path / CONFIG}: the network's setting {name} = {value!r:.80} cannot be read",
                remedy="save its state_dict as one file, and name `arch`",
            )
    return {name: value for name, value in settings.items() if name != "num_classes"}


def _is_size(value: Any) -> bool:
    """Whether it is a number that sizes a network, or a height and a width."""
    numbers = value if isinstance(value, list) and len(value) == 2 else [value]
    return all(type(number) in (int, float) and 0 < number <= MOST for number in numbers)


def _find_input(
    settings: Mapping[str, Any], about: Mapping[str, Any], path: Path
) -> tuple[int, int, int]:
    """Return the channels, height and width in pixels of the network's images."""
    shape = about.get("input_size", DEFAULT_INPUT)
    size = settings.get("img_size", shape[1:] if isinstance(shape, list) else None)
    sides = size if isinstance(size, list) else [size, size]
    channels = settings.get("in_chans", shape[0] if isinstance(shape, list) and shape else None)
    found = channels, *sides
    if len(found) != 3 or not all(type(part) is int and 0 < part <= MOST for part in found):
        raise CheckpointError(
            f"{path / CONFIG}: input_size must be the channels, height and width of an image "
            f"(got {shape!r:.80})"
        )
    return found


def _build(
    name: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path
) -> nn.Module:
    """Build timm's network, without its classifier, from exactly these tensors."""
    import torch

    from dino.models.zoo import open_library
    from dino.weights.formats.timm import drop_classifier
    from dino.weights.validate import NOTHING, match

    timm = open_library("timm", purpose=f"{path}, a folder of timm,")
    if not timm.is_model(name):
        raise WeightsError(
            f"{path / CONFIG}: timm has no {name!r}: {nearest(name, timm.list_models())}"
        )
    with torch.device("meta"):
        empty = timm.create_model(name, num_classes=0, **settings)
    found = match(empty, drop_classifier(name, tensors, path), f"{path} ({name})", NOTHING)
    model: nn.Module = timm.create_model(name, num_classes=0, **settings)
    model.load_state_dict(found.tensors)
    return model.eval()


def _check_default(model: nn.Module, name: str, shape: tuple[int, int, int], path: Path) -> None:
    """Check that commands, which know only the name, build a network with the same features.

    Raises:
        WeightsError: They do not.
    """
    from dino.models.registry import build_backbone
    from dino.weights.formats.timm import compute_the_same
    from dino.weights.validate import NOTHING, match

    arch = f"{TIMM_PREFIX}{name}"
    plain = build_backbone(arch, in_chans=shape[0])
    plain.load_state_dict(match(plain, model.state_dict(), f"{path} ({arch})", NOTHING).tensors)
    if not compute_the_same(plain.eval(), model, (1, *shape)):
        raise WeightsError(
            f"{path / CONFIG}: with its model_args, {name} computes other features than {arch} "
            "without, which is all that can be built here"
        )


def write_folder(network: Network, target: Path) -> None:
    """Write a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    Raises:
        OptionError: timm does not have the network, or the folder cannot be written to.
        WeightsError: timm's network has other tensors.
    """
    from dino.data.crops import RESIZE_RATIO
    from dino.data.photometric import build_normalization
    from dino.files import atomic_write
    from dino.runtime.context import make_output_folder
    from dino.weights.formats.timm import name_model, write_timm

    name, settings = name_model(network)
    make_output_folder(str(target), "`file_out`")
    write_timm(network, target / "model.safetensors")
    normalization = build_normalization(network.in_chans, network.normalization)
    about = {
        "input_size": [network.in_chans, *network.image_size],
        "interpolation": "bicubic",
        "crop_pct": 1 / RESIZE_RATIO,
        "mean": list(normalization.mean),
        "std": list(normalization.std),
        "num_classes": 0,
    }
    config = {"architecture": name, "num_classes": 0, "model_args": settings}
    with atomic_write(target / CONFIG, "`file_out`") as temporary:
        text = json.dumps(config | {"pretrained_cfg": about}, indent=2) + "\n"
        temporary.write_text(text, encoding="utf-8")


# Before Hugging Face's own folders, which have a config.json too.
FORMAT = Format(rank=1, detect=is_timm_folder, read=read_folder, kind=name_kind)
