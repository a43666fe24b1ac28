"""What a file is like: each kind of damage and oddity by a generated file, equal files by their
bytes."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.data.image_source import ImageSource
from dino.data.inspection import Digests, Inspection, InspectionDataset


def inspect(path: Path, *, channels: int = 3, min_size: int = 16) -> Inspection:
    source = ImageSource(root=path.parent, names=(path.name,))
    return InspectionDataset(source, channels=channels, min_size=min_size)[0]


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_a_usual_picture_has_nothing_but_a_digest(
    picture: Image.Image, tmp_path: Path, mode: str, ending: str
) -> None:
    picture.convert(mode).save(tmp_path / f"image{ending}")
    found = inspect(tmp_path / f"image{ending}")
    assert found[:3] == (None, None, None)
    assert len(found.digest) == 16


@pytest.mark.parametrize(
    ("mode", "ending"),
    [("CMYK", ".jpg"), ("P", ".png"), ("RGBA", ".png"), ("LA", ".png"), ("1", ".png")],
)
def test_other_modes_are_odd(picture: Image.Image, tmp_path: Path, mode: str, ending: str) -> None:
    picture.convert(mode).save(tmp_path / f"image{ending}")
    assert inspect(tmp_path / f"image{ending}")[:3] == (None, None, f"mode {mode}")


def test_transparency_sixteen_bits_and_further_frames_are_odd(
    picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "clear.png", transparency=(1, 2, 3))
    picture.save(tmp_path / "moving.webp", save_all=True, append_images=[picture.rotate(90)])
    Image.fromarray(np.full((20, 20), 700, np.uint16)).save(tmp_path / "deep.png")
    found = {
        name: inspect(tmp_path / name).odd for name in ("clear.png", "moving.webp", "deep.png")
    }
    assert found["clear.png"] == "mode RGB with transparency"
    assert found["moving.webp"] == "2 frames, of which only the first is used"
    assert str(found["deep.png"]).startswith("mode I")


def test_the_shorter_side_decides_what_is_tiny(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "image.png")
    assert inspect(tmp_path / "image.png", min_size=20).tiny is None
    assert inspect(tmp_path / "image.png", min_size=21).tiny == "30 x 20 pixels"


def test_a_file_that_training_could_not_read_is_corrupt_in_one_line(
    picture: Image.Image, tmp_path: Path
) -> None:
    picture.save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-200])
    (tmp_path / "text.jpg").write_text("no picture")
    os.symlink("nowhere", tmp_path / "gone.jpg")
    for name in ("cut.png", "text.jpg", "gone.jpg"):
        found = inspect(tmp_path / name)
        assert name in str(found.corrupt) and "\n" not in str(found.corrupt)
        assert found[1:] == (None, None, b"")


def test_arrays_must_have_the_channels_that_training_will_ask_for(tmp_path: Path) -> None:
    np.save(tmp_path / "image.npy", np.zeros((20, 20, 5), np.uint8))
    assert inspect(tmp_path / "image.npy", channels=5)[:3] == (None, None, None)
    assert "5 channels" in str(inspect(tmp_path / "image.npy").corrupt)


@given(
    st.lists(st.sampled_from([b"", *(bytes([0] * 15 + [k]) for k in range(3)), bytes([7] * 16)]))
)
def test_duplicates_are_the_later_ones_of_equal_files(digests: list[bytes]) -> None:
    kept = Digests(len(digests))
    for index, digest in enumerate(digests):
        kept.keep(index, digest)
    expected = {
        i: digests.index(digest)
        for i, digest in enumerate(digests)
        if digest and digest in digests[:i]
    }
    assert list(kept.find_duplicates().items()) == list(expected.items())
