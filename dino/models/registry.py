"""Backbones by name: our vision transformers, torchvision's classification models, and timm's.

Every builder returns a module (B, C, H, W) -> features (B, D) with the attribute `embed_dim` D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from dino.errors import OptionError, nearest
from dino.models.config import TIMM_PREFIX
from dino.models.foreign import build_timm, build_torchvision
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
    # For tests; the size that the IPU port uses in its own.
    "vit_mini": VitShape(embed_dim=96, depth=3, heads=3, mlp_ratio=2.0),
    # For small images on a laptop.
    "vit_micro": VitShape(embed_dim=128, depth=3, heads=4, conv_stem=True),
    "vit_tiny": VitShape(embed_dim=192, depth=12, heads=3),
    "vit_small": VitShape(embed_dim=384, depth=12, heads=6),
    "vit_base": VitShape(embed_dim=768, depth=12, heads=12),
    # These two are from masked autoencoders and not in the paper.
    "vit_large": VitShape(embed_dim=1024, depth=24, heads=16),
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
    """Reject an unknown architecture before anything is built.

    Raises:
        OptionError: No builder knows the name (the text suggests the closest one, else the
            families), or its library is not installed.
    """
    if arch in VITS:
        return
    if _is_of_timm(arch):
        timm = open_library("timm", purpose=f"`arch` {arch}")
        exists, others = timm.is_model(_timm_name(arch)), _xcit_names()
    else:
        purpose = f"`arch` {arch}, which is not built in,"
        models = open_library("torchvision", purpose=purpose).models
        others = models.list_models(module=models)
        exists = arch in others
    if not exists:
        raise OptionError(
            f"`arch` {arch} is unknown: {nearest(arch, [*VITS, *others], families=FAMILIES)}",
            value=arch,
        )


def is_vit(arch: str) -> bool:
    """Whether the name is one of our vision transformers, which have tokens and attention maps."""
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
        img_size: Side in pixels of the images that the ViT's position embedding is stored for.
        drop_path_rate: Stochastic depth, 0 to 1, of a network that has it.

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
    build = build_timm if _is_of_timm(arch) else build_torchvision
    return build(_timm_name(arch), in_chans=in_chans, drop_path_rate=drop_path_rate)


def width_of(backbone: nn.Module) -> int:
    """Width D of the features of a backbone, or of a module built around one."""
    return cast(int, backbone.embed_dim)


def expect_sizes(backbone: nn.Module, sides: Iterable[int]) -> None:
    """Prepare a backbone for square images of these sides in pixels; other sizes are slower."""
    if isinstance(backbone, VisionTransformer):
        backbone.expect_sizes(sides)


def set_attention(backbone: nn.Module, attend: Callable[..., Tensor]) -> None:
    """Make a vision transformer of ours attend by `attend`; leave other networks unchanged."""
    if isinstance(backbone, VisionTransformer):
        backbone.set_attention(attend)


def set_recompute(backbone: nn.Module, what: str) -> None:
    """Make a backbone recompute activations in the backward pass instead of storing them.

    Args:
        backbone: A result of `build_backbone`.
        what: `nothing`; `activations`, the outputs of normalizations and GELUs; `mlp`, also
            everything within a perceptron; or `blocks`, everything within a block.

    Raises:
        OptionError: This backbone does not support it.
    """
    if isinstance(backbone, VisionTransformer):
        backbone.set_recompute(what)
    elif what != "nothing" and not (what == "blocks" and _recompute_in_timm(backbone)):
        raise OptionError(
            f"`recompute` {what} needs a vision transformer; timm networks that support it and"
            " have no batch norm can recompute blocks",
            value=what,
            remedy="leave it out",
        )


def keeps_statistics(part: nn.Module) -> bool:
    """Whether a module itself is a batch norm, of torch or not: it averages over batches."""
    return any(name.startswith("running_") for name in part._buffers)


def _recompute_in_timm(backbone: nn.Module) -> bool:
    """Enable checkpointing of timm blocks if supported; batch norm would see each batch twice."""
    if any(map(keeps_statistics, backbone.modules())):
        return False
    try:
        switch = cast(Callable[[bool], None], backbone.set_grad_checkpointing)
        switch(True)
    except (AttributeError, AssertionError):  # not a timm network, or one without this feature
        return False
    return True


def describe_in_timm(
    arch: str, *, patch_size: int, in_chans: int, image_size: tuple[int, int]
) -> tuple[str, dict[str, Any]]:
    """The timm name closest to one of our backbones, and the settings that differ from it.

    Args:
        arch: A name that `check_arch` accepts.
        patch_size: Side of a patch in pixels; ViT only.
        in_chans: Channels C of an image.
        image_size: Height and width in pixels of the images that the position embedding is stored
            for; ViT only.

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
            f"timm has no network like {arch}, which embeds patches with several convolutions",
            remedy="ONNX holds any network",
        )
    name = f"{arch.replace('deit_', 'vit_')}_patch{patch_size}_224"
    if not timm.is_model(name):
        name = "vit_tiny_patch16_224"
        settings |= {"patch_size": patch_size, "embed_dim": shape.embed_dim, "depth": shape.depth}
        settings |= {"num_heads": shape.heads, "mlp_ratio": shape.mlp_ratio}
    return name, settings | ({"img_size": image_size} if image_size != (224, 224) else {})


def list_timm_shapes(name: str, settings: Mapping[str, Any]) -> dict[str, torch.Size]:
    """Shape of every tensor of a timm model by name; no memory is allocated for them."""
    timm = open_library("timm", purpose=name)
    with torch.device("meta"):
        return {
            key: value.shape
            for key, value in timm.create_model(name, **settings).state_dict().items()
        }


def _is_of_timm(arch: str) -> bool:
    """Whether timm builds this architecture: only XCiT and `timm:NAME`."""
    return arch.startswith((TIMM_PREFIX, XCIT_PREFIX))


def _timm_name(arch: str) -> str:
    """The timm name of an architecture for which `_is_of_timm` holds; other names unchanged."""
    if arch.startswith(XCIT_PREFIX) and arch not in _xcit_names():
        return f"{arch}_224"  # names in the original's hub omit the size
    return arch.removeprefix(TIMM_PREFIX)


def _xcit_names() -> list[str]:
    names: list[str] = open_library("timm", purpose="XCiT").list_models(f"{XCIT_PREFIX}*")
    return names
