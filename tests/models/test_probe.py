"""A network is looked at before it is built for good: whatever it does instead of giving one vector
per image is one line."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dino.errors import OptionError
from dino.models import probe
from dino.models.probe import Probe, check_depth


class Small(nn.Module):
    """Two numbers per image, changed by a function."""

    embed_dim = 2

    def __init__(self, change: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))
        self.change = change

    def forward(self, images: Tensor) -> object:
        return self.change(images.mean((2, 3))[:, :2] * self.scale)


def fail(features: Tensor) -> Tensor:
    raise KeyError("a\nlong\nreason " + "x y " * 200)


def look(monkeypatch: pytest.MonkeyPatch, network: Callable[[], nn.Module]) -> Probe:
    monkeypatch.setattr(probe, "build_backbone", lambda arch, **_: network())
    return Probe("odd")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda x: (x, x), r"gives a tuple for 4 images, not 2 real numbers each$"),
        (lambda x: {"features": x}, r"gives a dict for 4 images"),
        (lambda x: None, r"gives a NoneType for 4 images"),
        (lambda x: x[:, :, None, None], r"gives \(4, 2, 1, 1\) float32 for 4 images"),
        (lambda x: x[:, :1], r"gives \(4, 1\) float32 for 4 images, not 2 real"),
        (lambda x: torch.complex(x, x), r"gives \(4, 2\) complex64 for 4 images"),
        (lambda x: x.long(), r"gives \(4, 2\) int64 for 4 images"),
        (fail, r"cannot take 8-pixel crops: .*\[\.\.\.\]; change their size, or the network$"),
    ],
)
def test_what_is_no_vector_per_image_is_one_line(
    change: Callable[[Tensor], object], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OptionError, match=f"^`arch` odd {line}") as caught:
        look(monkeypatch, lambda: Small(change)).check_pass(4, 8)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_network_that_cannot_be_built_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"^`arch` odd cannot be built: 'unknown'$"):
        look(monkeypatch, lambda: {}["unknown"])


def test_sizes_from_the_first_image_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"^`arch` odd gets its sizes from its first image"):
        look(monkeypatch, lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(2)))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * (2 if x.sum() > 0 else 1),
        lambda x: x * float(x.mean()),
        lambda x: torch.from_numpy(x.numpy() * 2),
        lambda x: x + torch.ones(2, device="cpu"),
    ],
)
def test_a_network_that_needs_values_is_looked_at_with_values(
    change: Callable[[Tensor], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(monkeypatch, lambda: Small(change))
    found.check_pass(4, 8)
    assert found.device.type == "cpu"


def test_a_network_that_is_built_from_values_is_looked_at_without_them() -> None:
    found = Probe("regnet_y_400mf")  # torchvision reads widths from a tensor
    found.check_pass(1024, 64)  # 50 MB of pixels, were there any
    assert next(found.network.parameters()).device.type == "meta"


def test_more_images_are_named_where_they_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(monkeypatch, lambda: Small(nn.BatchNorm1d(2)))
    found.check_pass(2, 8)
    with pytest.raises(OptionError, match=r"^`arch` odd cannot train on 1 crop of 8 pixels at a"):
        found.check_pass(1, 8)


@pytest.mark.parametrize(
    ("arch", "acts"),
    [
        *[("timm:test_vit", True), ("timm:resnet10t", True), ("swin_t", True)],
        *[("timm:legacy_seresnet18", False), ("squeezenet1_1", False)],
        ("vgg11", False),  # its dropout is something else
    ],
)
def test_stochastic_depth_acts_or_is_refused(arch: str, acts: bool) -> None:
    if acts:
        return check_depth(arch, 0.1, in_chans=3, side=64)
    line = re.escape(f"`drop_path_rate` 0.1 does nothing: `arch` {arch} has no stochastic depth")
    with pytest.raises(OptionError, match=f"^{line}"):
        check_depth(arch, 0.1, in_chans=3, side=64)
