"""What would go wrong later stops a loader before its first batch, in one line."""

import functools
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from dino.data.crops import CropRecipe, center_crop
from dino.data.datasets import CropDataset, RandomViewDataset, Share, ViewDataset
from dino.data.loaders import build_train_loader, read_views
from dino.data.photometric import Normalization
from dino.data.sources import open_images
from dino.data.start_checks import check_levels, check_shared_memory
from dino.data.user_images import wrap_images
from dino.errors import DataError

RECIPE = CropRecipe(global_size=16, local_size=8, local_views=3)
CENTER = functools.partial(center_crop, size=16)


def write_gray(folder: Path, *highest: int) -> str:
    """16-bit PNGs with these highest levels."""
    for number, level in enumerate(highest):
        levels = np.full((20, 24), level, np.uint16)
        levels[0, 0] = 0
        Image.fromarray(levels).save(folder / f"{number:03}.png")
    return str(folder)


def test_16_bits_that_use_12_need_a_range(tmp_path: Path) -> None:
    source = open_images(write_gray(tmp_path, 100, 4095, 0))
    Image.new("RGB", (20, 20), "white").save(tmp_path / "bright.jpg")  # says nothing about them
    with pytest.raises(DataError, match=r"no 16-bit .* above 4095, .*; set `pixel_range` 0,4095"):
        check_levels(source)
    check_levels(source.ranged((0, 4095)))
    check_levels(open_images(write_gray(tmp_path, 100, 4096)))


def test_pictures_of_8_bits_need_no_range(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.tif"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    check_levels(open_images(str(tmp_path)))


def test_only_the_first_of_many_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dino.data.start_checks.LOOK", 2)
    bright = [0, 5000, 0, 0]  # of four, the first and the third are looked at
    with pytest.raises(DataError, match="above 0"):
        check_levels(open_images(write_gray(tmp_path, *bright)))


def test_the_levels_of_a_program_are_checked_where_its_code_need_not_run(tmp_path: Path) -> None:
    folder = write_gray(tmp_path, 100)
    for images in ([f"{folder}/000.png"], [Image.open(f"{folder}/000.png")]):
        with pytest.raises(DataError, match="above 100"):
            check_levels(wrap_images(images))
    check_levels(wrap_images([np.zeros((5, 5), np.uint8)]))


def test_every_loader_checks_the_levels(tmp_path: Path) -> None:
    source = open_images(write_gray(tmp_path, 100, 100))
    crops = CropDataset(source, RECIPE, seed=0, skip_bad=False)
    settings = {"batch_size": 1, "workers": 0, "pin_memory": False}
    with pytest.raises(DataError, match="`pixel_range`"):
        build_train_loader(crops, share=Share(), **settings)
    with pytest.raises(DataError, match="`pixel_range`"):
        next(read_views(ViewDataset(source, CENTER, channels=3, share=Share()), **settings))


def give_shared_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=size, f_frsize=1))


def test_a_small_shared_memory_is_named_with_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    source = open_images(str(tmp_path))
    crops = CropDataset(source, RECIPE, seed=0, skip_bad=False)
    needed = 3 * 2 * 2 * crops.count_bytes()  # processes x workers x batches of one image
    settings = {"batch_size": 1, "share": Share(), "pin_memory": False, "processes_here": 3}
    give_shared_memory(monkeypatch, needed)
    build_train_loader(crops, workers=2, **settings)
    give_shared_memory(monkeypatch, needed - 1)
    build_train_loader(crops, workers=0, **settings)
    with pytest.raises(DataError, match=r"/dev/shm has .* --ipc=host .* --shm-size, .*`num_work"):
        build_train_loader(crops, workers=2, **settings)
    give_shared_memory(monkeypatch, 1)
    views = ViewDataset(source, CENTER, channels=3, share=Share())
    with pytest.raises(DataError, match="/dev/shm has 0 MB free, but 1 batches of"):
        next(read_views(views, batch_size=4, workers=2, pin_memory=False))


def test_systems_without_that_folder_are_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino.data.start_checks.SHARED_MEMORY", "/nothing/here")
    check_shared_memory(SimpleNamespace(count_bytes=lambda: 1), batch_size=1, batches=1)


@pytest.mark.parametrize("host", [None, Normalization()])
def test_the_size_of_an_item_is_that_of_its_tensors(
    tmp_path: Path, host: Normalization | None
) -> None:
    Image.new("RGB", (50, 40)).save(tmp_path / "a.png")
    source = open_images(str(tmp_path))
    crops = CropDataset(source, RECIPE, seed=0, skip_bad=False, host_normalization=host)
    assert crops.count_bytes() == sum(tensor.nbytes for tensor in crops[0, 0])
    views = ViewDataset(source, CENTER, channels=3, share=Share())
    drawn = RandomViewDataset(source, lambda image, rng: CENTER(image), channels=3, seed=0)
    assert views.count_bytes() == drawn.count_bytes() == views[0].pixels.nbytes
    shaped = ViewDataset(source, CENTER, channels=3, share=Share(), shapes=[(9, 5), (8, 8)])
    assert shaped.count_bytes() == 3 * 64
