"""What a file is like: each kind of damage and oddity by a generated file, equal files by their bytes."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.data.inspection import Digests, Inspection, InspectionDataset
from dino.data.sources import ImageSource, open_images


def inspect(path: Path, *, channels: int = 3, min_size: int = 16) -> Inspection:
    source = ImageSource(root=path.parent, names=(path.name,))
    return InspectionDataset(source, channels=channels, min_size=min_size)[0]


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
def test_a_usual_picture_has_nothing_but_a_digest(picture: Image.Image, tmp_path: Path, mode: str, ending: str) -> None:
    picture.convert(mode).save(tmp_path / f"image{ending}")
    found = inspect(tmp_path / f"image{ending}")
    assert found[:3] == (None, None, None)
    assert len(found.digest) == 16


@pytest.mark.parametrize(
    ("mode", "ending"), [("CMYK", ".jpg"), ("P", ".png"), ("RGBA", ".png"), ("LA", ".png"), ("1", ".png")]
)
def test_other_modes_are_odd(picture: Image.Image, tmp_path: Path, mode: str, ending: str) -> None:
    picture.convert(mode).save(tmp_path / f"image{ending}")
    assert inspect(tmp_path / f"image{ending}")[:3] == (None, None, f"mode {mode}")


def test_transparency_sixteen_bits_and_further_frames_are_odd(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "clear.png", transparency=(1, 2, 3))
    picture.save(tmp_path / "moving.webp", save_all=True, append_images=[picture.rotate(90)])
    Image.fromarray(np.full((20, 20), 700, np.uint16)).save(tmp_path / "deep.png")
    found = {name: inspect(tmp_path / name).odd for name in ("clear.png", "moving.webp", "deep.png")}
    assert found["clear.png"] == "mode RGB with transparency"
    assert found["moving.webp"] == "2 frames, of which the first counts"
    assert str(found["deep.png"]).startswith("mode I")


def test_the_shorter_side_decides_what_is_tiny(picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "image.png")
    assert inspect(tmp_path / "image.png", min_size=20).tiny is None
    assert inspect(tmp_path / "image.png", min_size=21).tiny == "30 x 20 pixels"


def test_a_file_that_training_could_not_read_is_corrupt_in_one_line(picture: Image.Image, tmp_path: Path) -> None:
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


@given(st.lists(st.sampled_from([b"", *(bytes([0] * 15 + [k]) for k in range(3)), bytes([7] * 16)])))
def test_duplicates_are_the_later_ones_of_equal_files(digests: list[bytes]) -> None:
    kept = Digests(len(digests))
    for index, digest in enumerate(digests):
        kept.keep(index, digest)
    expected = {i: digests.index(digest) for i, digest in enumerate(digests) if digest and digest in digests[:i]}
    assert list(kept.find_duplicates().items()) == list(expected.items())


@pytest.mark.parametrize(
    "name", ["a\nb.png", "a\u2028b.png", " a.png", "\u00a0a.png", b"\xff.png".decode(errors="surrogateescape")]
)
def test_some_names_cannot_stand_in_a_list(name: str, tmp_path: Path) -> None:
    source = ImageSource(root=tmp_path, names=(name, f"folder/{name}"))
    assert source.name_in_list(0, tmp_path) is None
    inner = source.name_in_list(1, tmp_path)
    assert inner == (f"folder/{name}" if name.strip() != name else None)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=9))
def test_a_name_that_can_stand_in_a_list_is_read_back(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    root = tmp_path_factory.getbasetemp() / "names"
    (root / "images").mkdir(parents=True, exist_ok=True)
    source = ImageSource(root=root / "images", names=(f"{text}.png",))
    line = source.name_in_list(0, root)
    if line is not None:
        (root / "list.txt").write_text(f"{line}\n", encoding="utf-8")
        assert open_images(str(root / "list.txt")).path(0) == root / "images" / f"{text}.png"


def test_a_list_in_a_linked_folder_leads_to_the_images(picture: Image.Image, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    picture.save(tmp_path / "image.png")
    os.symlink(tmp_path / "deep" / "er", tmp_path / "link")
    os.symlink(tmp_path, tmp_path / "deep" / "root")
    source = ImageSource(root=tmp_path / "deep" / "root", names=("image.png",))
    line = source.name_in_list(0, tmp_path / "link")
    assert line == "../../image.png"
    (tmp_path / "link" / "list.txt").write_text(str(line))
    assert open_images(str(tmp_path / "link" / "list.txt")).path(0).samefile(tmp_path / "image.png")
