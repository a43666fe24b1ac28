"""Patch colors and attention: the size of the views, equal colors for equal patches, and what is
left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from dino.data.sources import open_images
from dino.devices.cpu import CpuDevice
from dino.models.registry import build_backbone
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from dino.visualization.look.patches import (
    ATTENDED,
    PatchReader,
    choose_side,
    show_attention,
    show_colors,
)
from dino.visualization.look.views import Views
from dino.weights.load import TrainedBackbone
from tests.pages import Page

IMAGES = 5


class Bare(nn.Module):
    """A network without a feature map."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(dim=(2, 3))


def describe(module: nn.Module, patch_size: int = 8, image_size: int = 16) -> TrainedBackbone:
    return TrainedBackbone(
        module=module,
        arch="some_network",
        patch_size=patch_size,
        image_size=image_size,
        in_chans=3,
        normalization=None,
    )


def read(folder: Path, module: nn.Module) -> PatchReader:
    for index in range(IMAGES):
        Image.new("RGB", (20, 20), (40 * index, 0, 0)).save(folder / f"{index}.png")
    run = Run(device=CpuDevice("fp32"), processes=Processes(Launch(), "gloo", "env://"))
    backbone = describe(module)
    views = Views(open_images(str(folder)), backbone)
    return PatchReader(backbone, range(IMAGES), views, run)


@pytest.mark.parametrize(
    ("patch_size", "trained", "side"),
    [(16, 224, 448), (8, 224, 224), (8, 40, 224), (14, 518, 518), (16, 1024, 640)],
)
def test_a_vision_transformer_gets_28_to_40_patches(
    patch_size: int, trained: int, side: int
) -> None:
    module = build_backbone("vit_mini", patch_size=patch_size, img_size=patch_size)
    assert choose_side(describe(module, patch_size, trained)) == side
    assert choose_side(describe(Bare(), patch_size, trained)) == trained


def test_every_image_has_colors_and_some_have_a_map_per_head(tmp_path: Path) -> None:
    module = build_backbone("vit_mini", patch_size=8, img_size=16).eval()
    reader = read(tmp_path, module)
    colors, attention = show_colors(reader), show_attention(reader)
    assert "28 x 28 features" in colors.note
    names = [f"{index}.png" for index in range(IMAGES)]
    page = Page(colors.body)
    assert page.values("img", "alt") == [
        text for name in names for text in (name, "colors", "patches")
    ]
    titles = ["head 0", "head 1", "head 2", "mean"]
    assert Page(attention.body).values("img", "alt") == [
        text for name in names[:ATTENDED] for text in (name, *titles)
    ]


def test_what_a_network_does_not_have_is_left_out_with_a_word(tmp_path: Path) -> None:
    reader = read(tmp_path, Bare())
    colors, attention = show_colors(reader), show_attention(reader)
    assert colors.body == attention.body == ""
    assert colors.note == "Left out: some_network has no feature map."
    assert attention.note == "Left out: some_network is not a vision transformer of this package."


def test_an_error_of_a_vision_transformer_is_no_lack(tmp_path: Path) -> None:
    module = build_backbone("vit_mini", patch_size=8, img_size=16).eval()
    reader = read(tmp_path, module)
    module.norm = nn.LayerNorm(7)  # type: ignore[assignment]
    with pytest.raises(RuntimeError):
        show_colors(reader)
    with torch.no_grad():
        assert show_attention(reader).body  # does not use it
