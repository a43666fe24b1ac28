"""Pictures: the colors of matplotlib's tables, one block a patch, and files that are whole or not
there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from dino.data.decode import read_image
from dino.errors import OptionError
from dino.visualization.pictures import (
    INFERNO,
    VIRIDIS,
    color,
    draw_heat,
    draw_mask,
    resize_whole,
    save_picture,
    to_picture,
    upsample_nearest,
    upsample_smooth,
)

# Rows 0, 64, 128, 192 and 255 of matplotlib's tables, in [0, 255].
TABLES = {
    VIRIDIS: [(68, 1, 84), (58, 82, 139), (32, 144, 140), (94, 201, 97), (253, 231, 36)],
    INFERNO: [(0, 0, 3), (87, 15, 109), (187, 55, 84), (249, 142, 8), (252, 254, 164)],
}


@pytest.mark.parametrize("table", TABLES)
def test_colors_are_those_of_matplotlib_from_least_to_greatest(table: int) -> None:
    values = np.array([[2.0, 2.0 + 64.5 / 256, 2.5, 2.0 + 192.5 / 256, 3.0]], dtype=np.float32)
    found = color(values, table)
    assert found.dtype == np.uint8 and found.shape == (1, 5, 3)
    assert np.abs(found[0].astype(int) - np.array(TABLES[table])).max() <= 1


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_map_of_one_value_has_the_first_color(value: float) -> None:
    assert np.ptp(color(np.full((3, 4), value, np.float32), VIRIDIS), axis=(0, 1)).max() == 0
    assert (
        np.abs(
            color(np.full((1, 1), value, np.float32), VIRIDIS)[0, 0] - np.array([68, 1, 84])
        ).max()
        <= 1
    )


def test_a_patch_becomes_a_block() -> None:
    patches = np.arange(6).reshape(2, 3)
    big = upsample_nearest(patches, 4)
    assert big.shape == (8, 12)
    assert all(
        big[row, column] == patches[row // 4, column // 4]
        for row in range(8)
        for column in range(12)
    )


@pytest.mark.parametrize(
    ("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])]
)
def test_any_number_of_channels_can_be_shown(channels: int, shown: list[int]) -> None:
    image = torch.arange(channels, dtype=torch.uint8).reshape(-1, 1, 1).expand(-1, 2, 3)
    assert to_picture(image).shape == (2, 3, 3) and to_picture(image)[1, 2].tolist() == shown


def test_a_mask_tints_what_is_kept_and_outlines_it() -> None:
    kept = np.zeros((9, 9), bool)
    kept[2:7, 2:7] = True
    marked = draw_mask(np.full((9, 9, 3), 100, np.uint8), kept)
    assert marked[0, 0].tolist() == [100, 100, 100]
    assert marked[4, 4].tolist() == [177, 50, 50]
    outline = (marked == (255, 0, 0)).all(axis=2)
    assert outline.sum() == 16 and not outline[3:6, 3:6].any() and not outline[~kept].any()


def test_a_kept_border_is_outlined_at_the_border() -> None:
    marked = draw_mask(np.zeros((6, 6, 3), np.uint8), np.ones((6, 6), bool))
    assert (marked[0] == (255, 0, 0)).all() and (marked[:, -1] == (255, 0, 0)).all()


def test_heat_is_half_of_a_gray_picture_and_half_of_a_stretched_map() -> None:
    picture = np.full((20, 40, 3), (200, 50, 0), np.uint8)  # a luma of 89
    values = np.array([[0.4, 0.4, 0.5, 0.5]], np.float32)
    heat = draw_heat(picture, values)
    assert heat.shape == (20, 40, 3) and heat.dtype == np.uint8
    ends = heat[10, [0, 39]].astype(int)
    wanted = (89 + np.array(TABLES[INFERNO])[[0, 4]]) / 2
    assert np.abs(ends - wanted).max() <= 1
    levels = heat[10].sum(axis=1, dtype=int)
    assert (np.diff(levels) >= 0).all() and len(set(levels[10:30])) > 10  # no blocks


def test_enlarged_maps_stay_within_their_values() -> None:
    values = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 1.0]], np.float32)
    found = upsample_smooth(values, 30, 45)
    assert found.shape == (30, 45) and found.min() == 0.0 and found.max() == 1.0
    assert abs(found[7, 30] - 0.5) < 0.2  # between a 0 and a 1


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_a_picture_is_read_back(tmp_path: Path, name: str) -> None:
    pixels = np.full((5, 7, 3), (10, 100, 200), np.uint8)
    save_picture(tmp_path / name, pixels)
    with Image.open(tmp_path / name) as file:
        assert file.format == {"a.png": "PNG", "a.jpg": "JPEG"}[name]
        assert np.abs(np.asarray(file).astype(int) - pixels).max() <= (0 if name == "a.png" else 3)


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match=r"file/a\.png cannot be written"):
        save_picture(tmp_path / "file" / "a.png", np.zeros((1, 1, 3), np.uint8))


@pytest.mark.parametrize("size", [(96,), (64, 120), (480, 480), (500, 700), None])
def test_whole_images_are_resized_as_by_torchvision(
    shared_data: Path, size: tuple[int, ...] | None
) -> None:
    for path in (
        shared_data / "broken" / "good.jpg",
        shared_data / "broken" / "huge_aspect_10x4000.jpg",
    ):
        picture = Image.open(path).convert("RGB")
        expected = np.asarray(picture if size is None else transforms.Resize(list(size))(picture))[
            :8000
        ]
        found = resize_whole(read_image(path), size).permute(1, 2, 0).numpy()[:8000]
        np.testing.assert_array_equal(found, expected)
