"""Pictures of a training run: true colors, every image once, what a network has."""

from __future__ import annotations

import io
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino.data.photometric import Normalization
from dino.data.sources import open_training_source
from dino.devices.cpu import CpuDevice
from dino.errors import OptionError
from dino.models.registry import build_backbone
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from dino.runtime.sinks.base import Jpeg
from dino.visualization.run_pictures import MAP_TILE, NAMES, VIEW_TILE, RunPictures
from dino.visualization.sheets import GAP, LINE
from tests.running import make_images

SIDE = 16
SHIFTED = Normalization(mean=(0.2, 0.5, 0.8), std=(0.1, 0.2, 0.3))


def open_pictures(folder: Path, *, arch: str = "vit_mini", images: int = 6) -> RunPictures:
    source = open_training_source(str(make_images(folder / "images", images)), None)
    return RunPictures(
        folder,
        source,
        Run(device=CpuDevice("fp32"), processes=Processes(Launch(), "gloo", "env://")),
        arch=arch,
        image_size=SIDE,
        in_chans=3,
        normalization=SHIFTED,
    )


def read(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_crops_have_the_levels_that_the_run_took_its_mean_and_spread_from(tmp_path: Path) -> None:
    levels = torch.tensor([[10.0, 100.0, 250.0], [0.0, 50.0, 90.0], [200.0, 20.0, 120.0]])
    views = [
        SHIFTED(levels[:2].repeat(2, 1)[..., None, None].expand(-1, -1, SIDE, SIDE)),
        SHIFTED(levels[2:].repeat(2, 1)[..., None, None].expand(-1, -1, SIDE // 2, SIDE // 2)),
    ]
    found = open_pictures(tmp_path).draw_crops(views, 2)
    sheet = read(tmp_path / "crops.png")
    row, local = VIEW_TILE + GAP, VIEW_TILE // 2
    assert sheet.shape == (LINE + 2 * row, 2 * row + local + GAP, 3)
    for column in range(2):
        for image in range(2):
            middle = sheet[LINE + row * image + 80, row * column + 80]
            assert middle.tolist() == levels[image].tolist()
    assert sheet[LINE + 40, 2 * row + 40].tolist() == levels[2].tolist()
    assert not sheet[LINE + local + 1, 2 * row + 40].any()  # local views are smaller
    jpeg = found["crops"]
    assert jpeg[1:] == sheet.shape[:2] and Image.open(io.BytesIO(jpeg.content)).format == "JPEG"


def draw(pictures: RunPictures, arch: str, times: int) -> list[dict[str, Jpeg]]:
    """Draw as many backbones, each with other weights."""
    torch.manual_seed(0)
    drawn = []
    for _ in range(times):
        backbone = build_backbone(arch, patch_size=8, img_size=SIDE)
        before = {name: part.clone() for name, part in backbone.state_dict().items()}
        random = torch.get_rng_state()
        drawn.append(dict(pictures.draw_backbone(backbone)))
        assert torch.equal(torch.get_rng_state(), random)
        after = backbone.state_dict()
        assert all(torch.equal(part, after[name]) for name, part in before.items())
    return drawn


def test_four_images_are_drawn_for_every_backbone(tmp_path: Path) -> None:
    first, second = draw(open_pictures(tmp_path), "vit_mini", 2)
    assert first.keys() == second.keys() == {"epoch_attention", "epoch_patches"}
    assert all(first[name] != second[name] for name in first)  # other weights
    attention, patches = (read(tmp_path / f"{name}.png") for name in first)
    assert attention.shape == (4 * (MAP_TILE + GAP + 2 * LINE), 5 * (MAP_TILE + GAP), 3)
    assert patches.shape == (LINE + 2 * (VIEW_TILE + GAP), 4 * (VIEW_TILE + GAP), 3)
    tiles = patches[LINE : LINE + VIEW_TILE, :].reshape(VIEW_TILE, 4, -1)
    assert len({tile.tobytes() for tile in np.moveaxis(tiles, 1, 0)}) == 4
    colors = patches[LINE + VIEW_TILE + GAP :][:VIEW_TILE, :VIEW_TILE]
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) == 4  # a block a patch


def test_a_convnet_has_patches_and_no_heads(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (first,) = draw(open_pictures(tmp_path, arch="resnet18"), "resnet18", 1)
    assert first.keys() == {"epoch_patches"}
    pictures, linear = open_pictures(tmp_path), torch.nn.Linear(1, 1)
    pictures.arch = "linear"
    assert [dict(pictures.draw_backbone(linear)) for _ in range(2)] == [{}, {}]
    assert caplog.text.count("no picture of patches: `arch` linear has no feature map") == 1


def test_images_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    pictures = open_pictures(tmp_path, images=8)
    for index in (2, 3, 6, 7):
        (tmp_path / "images" / f"{index:03}.png").write_bytes(b"no picture")
    backbone = build_backbone("vit_mini", patch_size=8, img_size=SIDE)
    assert pictures._images is not None
    assert pictures._images[0] == ["000.png", "004.png", "004.png"]
    assert len(pictures.draw_backbone(backbone)) == 2
    nothing = open_pictures(tmp_path / "more", images=1)
    (tmp_path / "more" / "images" / "000.png").write_bytes(b"no picture")
    assert nothing.draw_backbone(backbone) == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_users_picture_stays(tmp_path: Path, name: str) -> None:
    pictures = open_pictures(tmp_path)
    pictures._save({name: np.zeros((4, 4, 3), np.uint8)})
    open_pictures(tmp_path)  # ours is drawn anew
    Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
    with pytest.raises(OptionError, match=rf"{name}\.png was not written by this .*`output_dir`"):
        open_pictures(tmp_path)
