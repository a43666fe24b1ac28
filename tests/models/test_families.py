"""Every family of the installed timm and torchvision trains on crops of both resolutions, or is
refused in one line; the smallest network of each is looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch.utils._python_dispatch import TorchDispatchMode

from dino.errors import OptionError
from dino.models.probe import Probe

SIZES = ("test", "zepto", "atto", "femto", "pico", "nano", "micro", "mini", "xxt", "xxs", "ti")
SIZES += ("xxtiny", "xt", "xs", "tiny", "t", "t0", "t8", "s0", "small", "s")
RATE = 0.1
GLOBAL, LOCAL = 224, 96
# Families whose networks take one size only, or whose smallest has patches of 14 pixels.
ONE_SIZE = {
    *("beit", "byoanet", "cait", "coat", "convit", "deepseek_vit", "efficientformer"),
    *("efficientformer_v2", "eva", "gcvit", "hiera", "levit", "maxxvit", "mlp_mixer", "nest"),
    *("pit", "tnt", "visformer", "vision_transformer_relpos", "volo"),
    *("torchvision maxvit", "torchvision vision_transformer"),
}
aten = torch.ops.aten
OF_ONE_TENSOR = {
    *("gelu", "relu", "sigmoid", "silu", "tanh", "hardswish", "hardsigmoid", "hardtanh", "clamp"),
    *("relu_", "sigmoid_", "silu_", "tanh_", "hardswish_", "hardtanh_", "clamp_", "erfinv_"),
    *("normal_", "uniform_"),
}


def find_smallest(names: list[str]) -> str:
    """The smallest by what names say: building them all takes minutes."""

    def size_of(name: str) -> tuple[int, list[int], str]:
        words = [SIZES.index(word) for word in re.split("[_.]", name) if word in SIZES]
        numbers = [int(number) for number in re.findall(r"\d+", name)]
        return min(words, default=len(SIZES)), numbers, name

    return min(names, key=size_of)


def list_families() -> Iterator[tuple[str, str]]:
    """Each family with its smallest network."""
    for family in timm.list_modules():
        if names := timm.list_models(module=family):
            yield family, f"timm:{find_smallest(names)}"
    families: dict[str, list[str]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        module = torchvision.models.get_model_builder(name).__module__
        families.setdefault(module.rpartition(".")[2], []).append(name)
    for family, names in families.items():
        yield f"torchvision {family}", find_smallest(names)


class QuickShapes(TorchDispatchMode):
    """Norms and operators of one tensor give their shapes at once: on the meta device torch
    computes them in Python, part by part, which is most of the time of a pass."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        images = args[0] if args else None
        if not isinstance(images, torch.Tensor) or not images.is_meta:
            return func(*args, **(kwargs or {}))
        if func is aten.native_batch_norm.default:
            statistics = images.new_empty(images.shape[1])
            return torch.empty_like(images), statistics, statistics.clone()
        if func is aten.native_layer_norm.default:
            rows = images.shape[: -len(args[1])] + (1,) * len(args[1])
            return torch.empty_like(images), images.new_empty(rows), images.new_empty(rows)
        name = func.overloadpacket.__name__
        if name in OF_ONE_TENSOR:
            return images if name.endswith("_") else torch.empty_like(images)
        return func(*args, **(kwargs or {}))


def look(arch: str) -> bool:
    """Whether stochastic depth acts in a network that takes both resolutions.

    Raises:
        OptionError: It does not take them.
    """
    network = Probe(arch, drop_path_rate=RATE)
    network.check_pass(2, GLOBAL)
    draws = network.check_pass(2, LOCAL)
    if draws == 0 or arch.startswith("timm:"):  # no other layer of timm's draws
        return draws > 0
    return draws > Probe(arch).check_pass(2, LOCAL)


@pytest.mark.long
def test_every_family_takes_both_resolutions_or_is_refused_in_one_line() -> None:
    refused, acts = {}, set()
    for family, arch in list_families():
        try:
            with QuickShapes():
                if look(arch):
                    acts.add(family)
        except OptionError as error:
            refused[family] = str(error)
    assert refused.keys() <= ONE_SIZE, refused
    for line in refused.values():
        assert re.match(r"`arch` \S+ cannot take (224|96)-pixel crops: .*; change their size", line)
    assert {"resnet", "convnext", "vision_transformer", "xcit", "swin_transformer"} <= acts
    assert {"torchvision swin_transformer", "torchvision efficientnet"} <= acts
    assert not {"densenet", "vgg", "torchvision vgg", "torchvision resnet"} & acts
