"""Networks of timm and torchvision as backbones: features without a classifier, any channels.

Of timm's settings, those that a network does not accept are left out: they differ by family.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from dino.models.zoo import open_library


def build_timm(name: str, *, in_chans: int, drop_path_rate: float) -> nn.Module:
    """Build an untrained network of timm that takes images of any size where timm can.

    Args:
        name: Its name in timm.
        in_chans: Channels C of an image.
        drop_path_rate: Stochastic depth, 0 to 1, of a network that has it.

    Returns:
        A module (B, C, H, W) -> (B, D) with the attribute `embed_dim`.
    """
    timm = open_library("timm", purpose=f"timm's network {name}")
    optional: dict[str, Any] = {"drop_path_rate": drop_path_rate, "dynamic_img_size": True}
    while True:
        try:
            model: nn.Module = timm.create_model(name, num_classes=0, in_chans=in_chans, **optional)
            break
        except TypeError as error:
            unknown = next((setting for setting in optional if f"'{setting}'" in str(error)), None)
            if unknown is None:
                raise
            del optional[unknown]
    # Some networks widen the pooled features before the classifier.
    model.embed_dim = getattr(model, "head_hidden_size", None) or model.num_features
    return model


def build_torchvision(name: str, *, in_chans: int, drop_path_rate: float) -> nn.Module:
    """Build an untrained classification model of torchvision; as `build_timm`."""
    torchvision = open_library("torchvision", purpose=f"`arch` {name}")
    auxiliary = {"aux_logits": False} if name in {"googlenet", "inception_v3"} else {}
    model = torchvision.models.get_model(name, weights=None, **auxiliary)
    classifier, model.embed_dim = _classifier(model)
    model.set_submodule(classifier, nn.Identity())
    if in_chans != 3:
        _change_input(model, in_chans)
    depth = [p for p in model.modules() if isinstance(p, torchvision.ops.StochasticDepth)]
    largest = max((part.p for part in depth), default=0.0)
    for part in depth:  # they grow linearly, as ours do
        part.p *= drop_path_rate / largest
    built: nn.Module = model
    return built


def _classifier(model: nn.Module) -> tuple[str, int]:
    """Name and input width of the classifier: the last linear layer, else the last convolution."""
    modules = dict(model.named_modules())
    linear = [
        (name, part.in_features) for name, part in modules.items() if isinstance(part, nn.Linear)
    ]
    if linear:
        return linear[-1]
    return [(n, m.in_channels) for n, m in modules.items() if isinstance(m, nn.Conv2d)][-1]


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
