"""Backbones by name: our vision transformers, torchvision's classification models, timm's.

Every builder gives a module (B, C, H, W) -> features (B, D) that knows its `embed_dim` D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from dino.errors import OptionError, nearest
from dino.models.config import TIMM_PREFIX
from dino.models.vit import VisionTransformer
from dino.models.zoo import open_library


@dataclass(frozen=True, kw_only=True)
class VitShape:
    """Width, depth, heads, perceptron ratio and patch embedding of one vision transformer."""

    embed_dim: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    conv_stem: bool = False


VITS = {
    "vit_mini": VitShape(
        embed_dim=96, depth=3, heads=3, mlp_ratio=2.0
    ),  # for tests; the size of the IPU port's own
    "vit_micro": VitShape(
        embed_dim=128, depth=3, heads=4, conv_stem=True
    ),  # for small images on a laptop
    "vit_tiny": VitShape(embed_dim=192, depth=12, heads=3),
    "vit_small": VitShape(embed_dim=384, depth=12, heads=6),
    "vit_base": VitShape(embed_dim=768, depth=12, heads=12),
    "vit_large": VitShape(
        embed_dim=1024, depth=24, heads=16
    ),  # of masked autoencoders; none of the paper's
    "vit_huge": VitShape(embed_dim=1280, depth=32, heads=16),
}
VITS |= {"deit_tiny": VITS["vit_tiny"], "deit_small": VITS["vit_small"]}

XCIT_PREFIX = "xcit_"
FAMILIES = (
    "vit_small and other sizes",
    "a classification model of torchvision",
    "xcit_* or timm:NAME of timm",
)


def check_arch(arch: str) -> None:
    """Refuse an unknown architecture before anything is built.

    Raises:
        OptionError: No builder knows the name (the nearest known one is named, else the families), or its library is
            not installed.
    """
    if arch in VITS:
        return
    if _is_of_timm(arch):
        timm = open_library("timm", purpose=f"`arch` {arch}")
        found, others = timm.is_model(_timm_name(arch)), _xcit_names()
    else:
        models = open_library(
            "torchvision", purpose=f"`arch` {arch}, which is none of ours,"
        ).models
        others = models.list_models(module=models)
        found = arch in others
    if not found:
        raise OptionError(
            f"`arch` {arch} is unknown: {nearest(arch, [*VITS, *others], families=FAMILIES)}",
            value=arch,
        )


def is_vit(arch: str) -> bool:
    """Whether the name is one of our vision transformers, the only ones with patches, tokens and attention maps."""
    return arch in VITS


def build_backbone(
    arch: str,
    *,
    patch_size: int = 16,
    in_chans: int = 3,
    img_size: int = 224,
    drop_path_rate: float = 0.0,
) -> nn.Module:
    """Build an untrained backbone.

    Args:
        arch: A name that `check_arch` accepts.
        patch_size: Side of a patch in pixels; ViT only.
        in_chans: Channels C of an image.
        img_size: Side in pixels the ViT's position embedding is stored for.
        drop_path_rate: Stochastic depth, 0 to 1; ViT and timm only.

    Returns:
        A module (B, C, H, W) -> (B, D) with the attribute `embed_dim`.

    Raises:
        OptionError: The name is unknown.
    """
    check_arch(arch)
    if arch in VITS:
        return VisionTransformer(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
            **vars(VITS[arch]),
        )
    if _is_of_timm(arch):
        timm = open_library("timm", purpose=f"`arch` {arch}")
        model: nn.Module = timm.create_model(
            _timm_name(arch), num_classes=0, in_chans=in_chans, drop_path_rate=drop_path_rate
        )
        model.embed_dim = model.num_features  # as `width_of` wants it
        return model
    return _build_torchvision(arch, in_chans)


def width_of(backbone: nn.Module) -> int:
    """Width D of the features of a backbone, or of what is built around one."""
    return cast(int, backbone.embed_dim)


def expect_sizes(backbone: nn.Module, sides: Iterable[int]) -> None:
    """Let a backbone prepare for square images of these sides in pixels; others are taken too, with more work each."""
    if isinstance(backbone, VisionTransformer):
        backbone.expect_sizes(sides)


def set_recompute(backbone: nn.Module, what: str) -> None:
    """Let a backbone compute again in the backward pass what it then need not keep.

    Args:
        backbone: As `build_backbone` gives it.
        what: `nothing`; `activations`, what normalizations and GELUs give; `mlp`, all within a perceptron too;
            or `blocks`, all within a block.

    Raises:
        OptionError: This backbone cannot.
    """
    if isinstance(backbone, VisionTransformer):
        backbone.set_recompute(what)
    elif what != "nothing" and not (what == "blocks" and _recompute_in_timm(backbone)):
        raise OptionError(
            f"`recompute` {what} is for vision transformers, and blocks for those of timm that "
            "offer it and have no batch norm",
            value=what,
            remedy="leave it out",
        )


def _recompute_in_timm(backbone: nn.Module) -> bool:
    """Let a network of timm compute its blocks again, if it can; batch norm would count every batch twice."""
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in backbone.modules()):
        return False
    try:
        switch = cast(Callable[[bool], None], backbone.set_grad_checkpointing)
        switch(True)
    except (AttributeError, AssertionError):  # not of timm; of timm without this
        return False
    return True


def describe_in_timm(
    arch: str, *, patch_size: int, in_chans: int, image_size: tuple[int, int]
) -> tuple[str, dict[str, Any]]:
    """The name in timm of a backbone of ours, and the settings in which it differs from the model of that name.

    Args:
        arch: A name that `check_arch` accepts.
        patch_size: Side of a patch in pixels; ViT only.
        in_chans: Channels C of an image.
        image_size: Height and width in pixels that the position embedding is stored for; ViT only.

    Raises:
        OptionError: timm has no such network, or is not installed.
    """
    timm = open_library("timm", purpose=f"timm's network of {arch}")
    settings: dict[str, Any] = {"num_classes": 0} | (
        {"in_chans": in_chans} if in_chans != 3 else {}
    )
    if arch not in VITS:
        name = _timm_name(arch)
        if not timm.is_model(name):
            raise OptionError(f"timm has no network like {arch}")
        return name, settings
    shape = VITS[arch]
    if shape.conv_stem:
        raise OptionError(
            f"timm has no network like {arch}, which embeds patches by several convolutions"
        )
    name = f"{arch.replace('deit_', 'vit_')}_patch{patch_size}_224"
    if not timm.is_model(name):
        name = "vit_tiny_patch16_224"
        settings |= {"patch_size": patch_size, "embed_dim": shape.embed_dim, "depth": shape.depth}
        settings |= {"num_heads": shape.heads, "mlp_ratio": shape.mlp_ratio}
    return name, settings | ({"img_size": image_size} if image_size != (224, 224) else {})


def list_timm_shapes(name: str, settings: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Shape by name of every tensor of a model of timm, which is not filled with anything."""
    timm = open_library("timm", purpose=name)
    with torch.device("meta"):
        return {
            key: value.shape
            for key, value in timm.create_model(name, **settings).state_dict().items()
        }


def _is_of_timm(arch: str) -> bool:
    """Whether timm is asked for a name: for XCiT and `timm:NAME` alone."""
    return arch.startswith((TIMM_PREFIX, XCIT_PREFIX))


def _timm_name(arch: str) -> str:
    """The name in timm of an architecture of `_is_of_timm`; any other as it is."""
    if arch.startswith(XCIT_PREFIX) and arch not in _xcit_names():
        return f"{arch}_224"  # the original's hub names end before the size
    return arch.removeprefix(TIMM_PREFIX)


def _xcit_names() -> list[str]:
    names: list[str] = open_library("timm", purpose="XCiT").list_models(f"{XCIT_PREFIX}*")
    return names


def _build_torchvision(arch: str, in_chans: int) -> nn.Module:
    auxiliary = {"aux_logits": False} if arch in {"googlenet", "inception_v3"} else {}
    models = open_library("torchvision", purpose=f"`arch` {arch}").models
    model = models.get_model(arch, weights=None, **auxiliary)
    name, model.embed_dim = _classifier(model)
    model.set_submodule(name, nn.Identity())
    if in_chans != 3:
        _change_input(model, in_chans)
    built: nn.Module = model
    return built


def _classifier(model: nn.Module) -> tuple[str, int]:
    """Name and input width of the layer that gives the classes: the last linear one, else the last convolution."""
    parts = dict(model.named_modules())
    linear = [
        (name, part.in_features) for name, part in parts.items() if isinstance(part, nn.Linear)
    ]
    return (
        linear[-1]
        if linear
        else [(n, p.in_channels) for n, p in parts.items() if isinstance(p, nn.Conv2d)][-1]
    )


def _change_input(model: nn.Module, in_chans: int) -> None:
    name, first = next(
        (name, part) for name, part in model.named_modules() if isinstance(part, nn.Conv2d)
    )
    changed = nn.Conv2d(
        in_chans,
        first.out_channels,
        kernel_size=cast("tuple[int, int]", first.kernel_size),
        stride=cast("tuple[int, int]", first.stride),
        padding=cast("str | tuple[int, int]", first.padding),
        bias=first.bias is not None,
    )
    model.set_submodule(name, changed.to(torch.get_default_dtype()))
