"""Sheets: a row an image, titled tiles, as many sheets as it takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.visualization import sheets
from dino.visualization.pictures import INFERNO, color
from dino.visualization.sheets import (
    GAP,
    LINE,
    TILE,
    Sheet,
    add_title,
    describe_map,
    draw_row,
    draw_tile,
    fit,
    name_maps,
)

CELL = (TILE + GAP + 2 * LINE, TILE + GAP)  # pixels, height and width


def draw_maps(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def test_a_sheet_begins_anew_when_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sheets, "SHEET_ROWS", 2)
    sheet = Sheet(tmp_path / "sheet.png")
    for level in range(5):
        picture = np.full((8, 8, 3), 10 * level, np.uint8)
        sheet.add(picture, draw_maps(2, 2, 2), ["a", "b"], "picture")
        assert len(sheet.rows) < 2
    written = sheet.close()
    assert [path.name for path in written] == ["sheet.png", "sheet-2.png", "sheet-3.png"]
    rows = np.concatenate([np.asarray(Image.open(path)) for path in written])
    assert rows.shape == (5 * CELL[0], 3 * CELL[1], 3)
    middles = rows[2 * LINE + TILE // 2 :: CELL[0], TILE // 2, 0]
    assert middles.tolist() == [0, 10, 20, 30, 40]


def test_each_map_is_stretched_between_its_own_least_and_greatest() -> None:
    """One between 0.82 and 0.83 uses all colors, as does one between 0 and 1."""
    maps = np.array([[[0.82, 0.83]], [[0.0, 1.0]]], np.float32)
    row = draw_row(np.zeros((40, 40, 3), np.uint8), maps, ["near", "far"], "black")
    middle = row[2 * LINE + TILE // 2].reshape(3, CELL[1], 3)
    assert (middle[0] == 0).all()
    ends = middle[1:, [0, TILE - 1]].astype(int)
    colors = color(np.array([[0.0, 1.0]], np.float32), INFERNO)[0] / 2
    assert np.abs(ends - colors).max() <= 1
    assert np.abs(middle[1].astype(int) - middle[2]).max() <= 1
    assert len({tuple(pixel) for pixel in middle[1][:TILE]}) > 60  # smooth, no two blocks


def test_small_pictures_are_enlarged_and_keep_their_aspect() -> None:
    row = draw_row(np.full((8, 16, 3), 200, np.uint8), draw_maps(1, 1, 2), ["head 0"], "wide")
    tile = row[2 * LINE :, : TILE + GAP]
    assert (tile[: TILE // 4] == 0).all() and (tile[TILE // 4 : 3 * TILE // 4, :TILE] == 200).all()
    assert fit(np.zeros((4000, 10, 3), np.uint8), TILE).shape == (TILE, 1, 3)


def test_maps_are_named_and_described() -> None:
    assert name_maps(2) == ["head 0", "head 1", "mean of 2 heads"]
    assert describe_map(np.full((4, 4), 0.05, np.float32)) == "mean 0.050  entropy 100.0%"
    one = np.zeros((2, 2), np.float32)
    one[0, 1] = 0.8
    assert describe_map(one) == "mean 0.20  entropy 0.0%"
    half = np.array([[0.4, 0.4, 0.0, 0.0]], np.float32)
    assert describe_map(half) == "mean 0.20  entropy 50.0%"
    for empty in (np.zeros((3, 3), np.float32), np.ones((1, 1), np.float32)):
        assert describe_map(empty).endswith("entropy 0.0%")


@pytest.mark.parametrize("text", ["a", "W" * 300, "\u65e5\u672c \udce9.jpg", ""])
def test_any_text_fits_into_its_tile(text: str) -> None:
    tile = draw_tile(np.zeros((TILE, TILE, 3), np.uint8), ["", text], TILE)
    assert tile.shape == (*CELL, 3)
    assert tile[LINE : 2 * LINE].any() == bool(text)
    assert not tile[:LINE].any() and not tile[2 * LINE :].any() and not tile[:, TILE:].any()


def test_a_title_goes_above_a_picture() -> None:
    picture = draw_tile(np.full((30, 200, 3), 7, np.uint8), [], 200)
    titled = add_title(picture, "frame-0001")
    assert (titled[LINE:] == picture).all() and titled[:LINE].max() > 200
