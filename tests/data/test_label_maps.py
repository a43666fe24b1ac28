"""Label maps keep their labels and colors on the way to disk and back, and what is none is refused
by name."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.data.label_maps import read_label_map, resize_labels, write_label_map
from dino.errors import DataError, OptionError
from dino.evaluation.video_segmentation.davis import DAVIS_PALETTE


def test_labels_and_palette_come_back(tmp_path: Path) -> None:
    labels = np.arange(256, dtype=np.uint8).reshape(8, 32)
    path = tmp_path / "00000.png"
    write_label_map(path, labels, DAVIS_PALETTE)
    found = read_label_map(path)
    assert (found.labels == labels).all() and found.palette == DAVIS_PALETTE
    with Image.open(path) as picture:
        assert (picture.mode, picture.format, picture.size) == ("P", "PNG", (32, 8))
    assert [file.name for file in tmp_path.iterdir()] == ["00000.png"]


@pytest.mark.parametrize(("mode", "values"), [("L", {0, 255}), ("1", {0, 1})])
def test_gray_and_bilevel_maps_have_no_palette(mode: str, values: set[int], tmp_path: Path) -> None:
    picture = Image.new("L", (6, 4))
    picture.putpixel((2, 1), 255)
    picture.convert(mode).save(tmp_path / "map.png")
    labels, palette = read_label_map(tmp_path / "map.png")
    assert palette is None and set(np.unique(labels).tolist()) == values and labels.shape == (4, 6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16", "LA"])
def test_other_pictures_are_refused(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (6, 4)).save(tmp_path / "map.png")
    with pytest.raises(
        DataError, match=f"map.png must be an indexed .* label map .got mode {mode}"
    ):
        read_label_map(tmp_path / "map.png")


@pytest.mark.parametrize("ending", ["bmp", "jpg", "eps"])
def test_only_png_is_decoded_whatever_the_name(ending: str, tmp_path: Path) -> None:
    """JPEG changes labels, and PostScript is a program."""
    Image.new("L", (6, 4)).save(tmp_path / f"map.{ending}")
    (tmp_path / f"map.{ending}").rename(tmp_path / "map.png")
    with pytest.raises(DataError, match=r"map\.png cannot be decoded: cannot identify"):
        read_label_map(tmp_path / "map.png")


def test_files_that_are_missing_or_damaged_are_named(tmp_path: Path) -> None:
    (tmp_path / "map.png").write_bytes(b"nonsense")
    for name in ("map.png", "nowhere.png"):
        with pytest.raises(DataError, match=f"{name} cannot be decoded"):
            read_label_map(tmp_path / name)


def test_a_map_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"`output_dir`: .*nowhere/00000.png cannot be written"):
        write_label_map(
            tmp_path / "nowhere" / "00000.png", np.zeros((2, 2), np.uint8), DAVIS_PALETTE
        )


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
)
def test_scaled_labels_are_those_at_the_middle_of_the_new_pixels(
    height: int, width: int, rows: int, columns: int
) -> None:
    labels = np.arange(height * width, dtype=np.uint32).astype(np.uint8).reshape(height, width)
    down, right = (
        ((np.arange(new) + 0.5) * (old / new)).astype(int)
        for new, old in ((rows, height), (columns, width))
    )
    found = resize_labels(labels, (rows, columns))
    assert found.shape == (rows, columns)
    # Where the middle falls on a border between two pixels, either of them is right.
    on_border = [
        (((np.arange(n) * 2 + 1) * o) % (2 * n)) == 0 for n, o in ((rows, height), (columns, width))
    ]
    sure = ~(on_border[0][:, None] | on_border[1][None, :])
    assert (found == labels[down[:, None], right[None, :]])[sure].all()
