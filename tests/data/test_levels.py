"""Every depth becomes the documented 8 bits, or ends in a line that names the range to give."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dino.data.decode import read_highest, read_image
from dino.data.levels import check_range, to_bytes
from dino.data.user_images import to_pixels
from dino.errors import DataError, OptionError

RANDOM = np.random.RandomState(0)
GRAY12 = RANDOM.randint(0, 4096, (9, 7)).astype(np.uint16)
COLOR12 = RANDOM.randint(0, 4096, (9, 7, 3)).astype(np.uint16)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # TIFF's sample formats


def write_tiff(path: Path, levels: np.ndarray, sample_format: int) -> Path:
    """An uncompressed gray TIFF of any type, also of those that Pillow does not write."""
    height, width = levels.shape
    data, bits = levels.tobytes(), levels.dtype.itemsize * 8
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 1), (273, 8), (277, 1)]
    tags += [(278, height), (279, len(data)), (339, sample_format)]
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    path.write_bytes(head + data + struct.pack("<H", len(tags)) + rows + bytes(4))
    return path


def write_color(path: Path, levels: np.ndarray) -> Path:
    cv2.imwrite(str(path), levels[..., ::-1])
    return path


def scaled(levels: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.rint((levels.astype(float).clip(low, high) - low) * (255 / (high - low)))


def read_gray(path: Path, **settings: tuple[float, float]) -> np.ndarray:
    return read_image(path, 1, **settings)[0].numpy()


@pytest.mark.parametrize(
    ("levels", "sample_format", "pixel_range"),
    [
        (RANDOM.rand(9, 7).astype(np.float32), FLOAT, (0.0, 1.0)),
        (RANDOM.randint(-1000, 1000, (9, 7)).astype(np.int16), SIGNED, (-1000.0, 400.0)),
        (RANDOM.randint(-128, 128, (9, 7)).astype(np.int8), SIGNED, (-128.0, 127.0)),
        (RANDOM.randint(-(2**31), 2**31, (9, 7)).astype(np.int32), SIGNED, (-(2.0**31), 2.0**31)),
        (RANDOM.randint(0, 2**32, (9, 7)).astype(np.uint32), UNSIGNED, (0.0, 2.0**32)),
    ],
)
def test_levels_without_8_or_16_unsigned_bits_need_a_range(
    levels: np.ndarray, sample_format: int, pixel_range: tuple[float, float], tmp_path: Path
) -> None:
    path = write_tiff(tmp_path / "a.tif", levels, sample_format)
    with pytest.raises(DataError, match=r"a\.tif cannot .* from .*; `pixel_range` LO,HI") as caught:
        read_image(path)
    assert caught.value.setting == "pixel_range"
    assert np.array_equal(read_gray(path, pixel_range=pixel_range), scaled(levels, *pixel_range))


@pytest.mark.parametrize(
    ("kind", "sample_format"),
    [(np.float32, FLOAT), (np.int32, SIGNED), (np.int16, SIGNED), (np.uint32, UNSIGNED)],
)
def test_whole_numbers_up_to_255_are_levels_of_any_type(
    kind: type, sample_format: int, tmp_path: Path
) -> None:
    levels = RANDOM.randint(0, 256, (9, 7))
    path = write_tiff(tmp_path / "a.tif", levels.astype(kind), sample_format)
    assert np.array_equal(read_gray(path), levels)
    assert np.array_equal(read_gray(path, pixel_range=(0, 510)), np.rint(levels / 2))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_a_range_uses_the_12_bits_of_gray_pictures(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    cv2.imwrite(str(path), GRAY12)
    assert np.array_equal(read_gray(path), GRAY12 >> 8)
    assert np.array_equal(read_gray(path, pixel_range=(0, 4095)), scaled(GRAY12, 0, 4095))
    assert read_highest(path) == GRAY12.max()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.ppm"])
def test_a_range_uses_the_12_bits_of_color_pictures(name: str, tmp_path: Path) -> None:
    path = write_color(tmp_path / name, COLOR12)
    with Image.open(path) as picture:
        before = np.asarray(picture.convert("RGB"))
    assert np.array_equal(read_image(path).permute(1, 2, 0), before)
    expected = scaled(COLOR12, 0, 4095)
    image = read_image(path, pixel_range=(0, 4095))
    assert np.array_equal(image.permute(1, 2, 0), expected)
    gray = np.asarray(Image.fromarray(expected.astype(np.uint8)).convert("L"))
    assert np.array_equal(read_gray(path, pixel_range=(0, 4095)), gray)
    assert read_highest(path) == COLOR12.max()


def test_the_maximum_that_a_file_states_needs_no_range(tmp_path: Path) -> None:
    gray, color = tmp_path / "a.pgm", tmp_path / "a.ppm"
    gray.write_bytes(b"P5 7 9 4095\n" + GRAY12.astype(">u2").tobytes())
    color.write_bytes(b"P6 7 9 4095\n" + COLOR12.astype(">u2").tobytes())
    for path, levels in ((gray, GRAY12[..., None]), (color, COLOR12)):
        image = read_image(path)
        assert np.abs(image.permute(1, 2, 0).numpy() - levels / 4095 * 255).max() <= 1
        assert np.array_equal(read_image(path, pixel_range=(0, 4095)), image)
        assert read_highest(path) is None


def test_8_bits_stay_as_they_are_whatever_the_range(tmp_path: Path) -> None:
    pixels = RANDOM.randint(0, 256, (9, 7, 3)).astype(np.uint8)
    np.save(tmp_path / "a.npy", pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    for name in ("a.npy", "a.png", "a.jpg"):
        image = read_image(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name, pixel_range=(0, 4095)), image)
        assert read_highest(tmp_path / name) is None


def test_a_range_lets_arrays_of_other_types_in(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", COLOR12)
    with pytest.raises(DataError, match=r"must hold uint8 .*got uint16 .*`pixel_range` LO,HI"):
        read_image(tmp_path / "a.npy")
    image = read_image(tmp_path / "a.npy", pixel_range=(0, 4095))
    assert np.array_equal(image.permute(1, 2, 0), scaled(COLOR12, 0, 4095))


def test_levels_that_are_no_number_are_refused(tmp_path: Path) -> None:
    levels = np.full((9, 7), np.nan, np.float32)
    path = write_tiff(tmp_path / "a.tif", levels, FLOAT)
    with pytest.raises(DataError, match="levels hold NaN"):
        read_image(path, pixel_range=(0, 1))
    with pytest.raises(DataError, match="from nan to nan"):
        read_image(path)
    assert to_bytes(np.float32([-np.inf, np.inf]), (0, 1)).tolist() == [0, 255]


def test_pictures_of_a_program_follow_the_same_rules() -> None:
    floats = Image.fromarray(RANDOM.rand(9, 7).astype(np.float32))
    with pytest.raises(DataError, match=r"^image 3 cannot be used: its levels are float32"):
        to_pixels(floats, 3, "image 3")
    whole = RANDOM.randint(0, 256, (9, 7)).astype(np.int32)
    assert np.array_equal(to_pixels(Image.fromarray(whole), 1, "x")[0], whole)
    assert np.array_equal(to_pixels(Image.fromarray(GRAY12), 1, "x")[0], GRAY12 >> 8)


@pytest.mark.parametrize(
    "wrong", [(5.0, 5.0), (9.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))]
)
def test_a_range_that_does_not_go_up_is_refused(wrong: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="`pixel_range` must be LO,HI with LO below HI"):
        check_range(wrong)
    check_range(None)
    check_range((-1000, 400))
