"""Images of a program: what is taken, in which order, with which labels; and what is said of the
rest."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset, TensorDataset

from dino.data.decode import read_image
from dino.data.user_images import read_labels, to_pixels, wrap_images
from dino.errors import DataError

PIXELS = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
EXPECTED = torch.from_numpy(PIXELS).permute(2, 0, 1)


class Listed(Dataset):
    """A map-style data set of the items it is given."""

    def __init__(self, *items: Any, **about: Any) -> None:
        self.items = items
        vars(self).update(about)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        if isinstance(self.items[index], BaseException):
            raise self.items[index]
        return self.items[index]


class Stream(IterableDataset):
    """A data set that has a length and no places."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[np.ndarray]:
        yield PIXELS


@pytest.mark.parametrize(
    "image",
    [
        PIXELS,
        np.array(PIXELS[::-1, ::-1])[::-1, ::-1],
        np.asfortranarray(PIXELS),
        EXPECTED,
        Image.fromarray(PIXELS),
    ],
    ids=["array", "reversed view", "by columns", "tensor", "PIL"],
)
def test_every_kind_gives_the_same_pixels(image: Any) -> None:
    assert torch.equal(to_pixels(image, 3, "it"), EXPECTED)


def test_pixels_are_copies_of_a_programs_array() -> None:
    pixels = PIXELS.copy()
    found = to_pixels(pixels, 3, "it")
    pixels[:] = 0
    assert torch.equal(found, EXPECTED)


def test_gray_and_many_channels() -> None:
    gray = PIXELS[..., 0]
    assert torch.equal(to_pixels(gray, 1, "it"), torch.from_numpy(gray)[None])
    assert torch.equal(
        to_pixels(Image.fromarray(gray), 3, "it"), torch.from_numpy(gray).expand(3, -1, -1)
    )
    assert to_pixels(np.zeros((4, 6, 5), np.uint8), 5, "it").shape == (5, 4, 6)
    assert to_pixels(np.zeros((4, 6, 5), np.uint8), 5, "it").dtype == torch.uint8


def test_pictures_are_converted_as_files_are(tmp_path: Path) -> None:
    deep = Image.fromarray(np.arange(24, dtype=np.uint16).reshape(4, 6) * 2000)
    for name, picture in (
        ("deep.png", deep),
        ("palette.png", Image.fromarray(PIXELS).convert("P")),
        ("alpha.png", Image.fromarray(PIXELS).convert("RGBA")),
    ):
        picture.save(tmp_path / name)
        for channels in (1, 3):
            assert torch.equal(
                to_pixels(picture, channels, name), read_image(tmp_path / name, channels)
            ), name


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (EXPECTED.float(), r"torch.float32 \(3, 4, 6\)"),
        (PIXELS.astype(np.int64), r"int64 \(4, 6, 3\)"),
        (PIXELS[None], r"uint8 \(1, 4, 6, 3\)"),
        (EXPECTED[0], r"torch.uint8 \(4, 6\)"),
        ({"image": PIXELS}, "dict"),
        (None, "NoneType"),
    ],
)
def test_what_is_no_image_is_named(image: Any, got: str) -> None:
    with pytest.raises(
        DataError, match=rf"^image 7 must be a PIL image, .* or a path \(got {got}\)$"
    ):
        to_pixels(image, 3, "image 7")


def test_wrong_channels_and_no_pixels_are_named() -> None:
    for image, channels, text in (
        (PIXELS, 1, "it has 3 channels, but `in_chans` is 1"),
        (PIXELS[..., 0], 3, "it has 1 channels, but `in_chans` is 3"),
        (PIXELS[:0], 3, "it must not be empty"),
        (Image.fromarray(PIXELS), 5, r"must be .*\(got a picture of mode RGB\)"),
    ):
        with pytest.raises(DataError, match=text):
            to_pixels(image, channels, "it")


def test_items_may_be_images_or_begin_with_one() -> None:
    source = wrap_images(
        Listed(
            PIXELS, (PIXELS,), (PIXELS, 3), [PIXELS, np.int64(4), "more"], (PIXELS, {"boxes": []})
        )
    )
    found = [source.read_labelled(index, 3) for index in range(5)]
    assert all(torch.equal(pixels, EXPECTED) for pixels, _ in found)
    assert [label for _, label in found] == [-1, -1, 3, 4, -1]
    assert torch.equal(wrap_images(TensorDataset(EXPECTED[None])).read(0, 3), EXPECTED)


def test_labels_come_from_the_data_set_where_it_says_them() -> None:
    items = (PIXELS, 0), (PIXELS, 1)
    for about in (
        {"targets": [5, 6]},
        {"labels": torch.tensor([5, 6])},
        {"targets": np.array([5, 6])},
    ):
        source = wrap_images(Listed(*items, **about))
        assert source.labels == (5, 6) and source.read_labelled(1, 3)[1] == 6
    for about in (
        {"targets": ["cat", "dog"]},  # names, which may be classes of another order
        {"targets": [5, 6], "target_transform": abs},  # the items' are others
        {"labels": None},
        {"labels": [-1, 2]},  # not labeled, as torchvision's STL10 says it
    ):
        source = wrap_images(Listed(*items, **about))
        assert source.labels is None and source.read_labelled(1, 3)[1] == 1
    with pytest.raises(DataError, match="labels must be 2, one per image .got 1"):
        wrap_images(Listed(*items, targets=[5]))


def test_labels_of_items_are_read_where_all_have_one() -> None:
    assert read_labels([(PIXELS, 1), (PIXELS, torch.tensor(0))]) == [1, 0]
    assert read_labels([(PIXELS, 1), PIXELS]) is None
    assert read_labels([(PIXELS, 0.5)]) is None


def test_names_are_paths_or_numbers(tmp_path: Path) -> None:
    paths = [tmp_path / "b.png", str(tmp_path / "a.png")]
    for path in paths:
        Image.fromarray(PIXELS).save(path)
    source = wrap_images(paths)
    assert source.names == tuple(map(str, paths)) and not source.in_memory
    assert torch.equal(source.read(0, 3), EXPECTED)
    assert wrap_images([PIXELS, PIXELS]).names == ("0", "1") and wrap_images([PIXELS]).in_memory
    assert not wrap_images(Listed(PIXELS)).in_memory  # it may read files


def test_chosen_images_keep_their_place_in_the_data_set() -> None:
    pixels = [np.full((2, 2, 3), value, np.uint8) for value in range(6)]
    source = wrap_images(Listed(*pixels, targets=range(6))).limited(3)
    assert source.labels == (0, 2, 4) and source.names == ("0", "2", "4")
    assert [int(source.read(index, 3)[0, 0, 0]) for index in range(3)] == [0, 2, 4]
    assert int(source.selected([2]).read(0, 3)[0, 0, 0]) == 4
    assert source.limited(None) is source


def test_the_fingerprint_tells_the_length_alone() -> None:
    first, other, longer = (
        wrap_images([image] * n) for image, n in ((PIXELS, 2), (EXPECTED, 2), (PIXELS, 3))
    )
    assert first.fingerprint() == other.fingerprint() != longer.fingerprint()


@pytest.mark.parametrize(
    ("images", "text"),
    [
        (7, r"a list or map-style data set of images \(got int\)"),
        (iter([PIXELS]), r"\(got list_iterator\); .* iterable-style data set"),
        (Stream(), r"\(got Stream\)"),
        ([], "holds no image"),
    ],
)
def test_what_is_no_data_set_is_refused(images: Any, text: str) -> None:
    with pytest.raises(DataError, match=text):
        wrap_images(images)


def test_an_error_of_the_data_sets_own_names_the_image() -> None:
    source = wrap_images(Listed(PIXELS, OSError("disk gone"), DataError("as it is")))
    with pytest.raises(
        DataError, match="^image 1 of the data set cannot be read: OSError: disk gone$"
    ) as caught:
        source.read(1, 3)
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(DataError, match="^as it is$"):
        source.read(2, 3)


def test_ctrl_c_is_no_error_of_an_image() -> None:
    with pytest.raises(KeyboardInterrupt):
        wrap_images(Listed(KeyboardInterrupt())).read(0, 3)


def test_reading_a_file_interns_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    images = wrap_images([str(tmp_path / "a.png")])
    interned: list[str] = []
    monkeypatch.setattr(sys, "intern", lambda text: interned.append(text) or text)
    assert images.read(0, 3).shape == (3, 8, 8) and images.read_highest(0) is None
    assert "a.png" not in interned
