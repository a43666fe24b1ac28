"""Attention maps: the right rows of the right softmax, drawn for colour and gray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino.data.photometric import build_normalisation
from dino.errors import OptionError
from dino.models.registry import build_backbone
from dino.models.vit import VisionTransformer
from dino.visualization.attention import TILE, compute_maps, draw_sheet
from tests.running import make_images


def build(channels: int) -> VisionTransformer:
    backbone = build_backbone("vit_mini", patch_size=8, img_size=32, in_chans=channels)
    assert isinstance(backbone, VisionTransformer)
    return backbone.eval()


def test_maps_are_the_class_tokens_attention_to_the_patches() -> None:
    backbone, images = build(3), torch.randn(2, 3, 32, 48)[..., :32]
    maps = compute_maps(backbone, images)
    whole = backbone.get_last_selfattention(images)
    assert maps.shape == (2, 3, 4, 4)
    assert torch.allclose(maps.flatten(2), whole[:, :, 0, 1:], atol=1e-6)
    assert torch.all(maps.sum(dim=(2, 3)) < 1.0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_has_a_row_an_image_and_a_column_a_head(tmp_path: Path, channels: int) -> None:
    paths = sorted(make_images(tmp_path / "images", 2).iterdir())
    target = tmp_path / "sheets" / "attention.png"
    draw_sheet(build(channels), paths, size=32, normalisation=build_normalisation(channels), target=target)
    sheet = np.asarray(Image.open(target))
    assert sheet.shape == (2 * TILE, 4 * TILE, 3)
    assert all(sheet[:, column * TILE : (column + 1) * TILE].std() > 0 for column in range(4))


def test_a_sheet_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    paths = sorted(make_images(tmp_path / "images", 1).iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="cannot be written"):
        target = tmp_path / "file" / "attention.png"
        draw_sheet(build(3), paths, size=32, normalisation=build_normalisation(3), target=target)
