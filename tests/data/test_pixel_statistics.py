"""Mean and standard deviation of a data set's pixels."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.data import pixel_statistics
from dino.data.pixel_statistics import measure_pixels
from dino.data.sources import open_images
from dino.errors import DataError

SIZES = ((8, 8), (30, 20), (5, 7))


def write(folder: Path, pictures: list[np.ndarray]) -> list[np.ndarray]:
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return pictures


def draw(folder: Path) -> list[np.ndarray]:
    random = np.random.RandomState(0)
    return write(folder, [random.randint(0, 200, (*size, 3)).astype(np.uint8) for size in SIZES])


def test_each_image_counts_equally_and_channels_alone(tmp_path: Path) -> None:
    pictures = [pixels.reshape(-1, 3) / 255 for pixels in draw(tmp_path)]
    mean = np.mean([pixels.mean(axis=0) for pixels in pictures], axis=0)
    square = np.mean([(pixels**2).mean(axis=0) for pixels in pictures], axis=0)
    found = measure_pixels(open_images(str(tmp_path)), 3)
    assert found.mean == pytest.approx(mean, abs=6e-5)
    assert found.std == pytest.approx(np.sqrt(square - mean**2), abs=6e-5)
    assert found.mean == tuple(round(value, 4) for value in found.mean)
    assert len(measure_pixels(open_images(str(tmp_path)), 1).mean) == 1


def test_only_some_images_of_many_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path)
    (tmp_path / "2.png").write_bytes(b"not read")
    monkeypatch.setattr(pixel_statistics, "SAMPLE", 2)  # of 3: 0 and 1
    measure_pixels(open_images(str(tmp_path)), 3)


def test_an_unreadable_image_is_an_error_or_left_out(tmp_path: Path) -> None:
    draw(tmp_path)
    source = open_images(str(tmp_path))
    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"1\.png"):
        measure_pixels(source, 3)
    measure_pixels(source, 3, skip_bad=True)
    for path in tmp_path.iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="none of 3 images can be read"):
        measure_pixels(source, 3, skip_bad=True)


def test_a_channel_without_contrast_is_an_error(tmp_path: Path) -> None:
    (pixels,) = write(tmp_path, [np.full((4, 4, 3), 9, np.uint8)])
    with pytest.raises(DataError, match="a channel has the same level in all images; give `std`"):
        measure_pixels(open_images(str(tmp_path)), 3)
    pixels[0] = 255
    write(tmp_path, [pixels])
    assert min(measure_pixels(open_images(str(tmp_path)), 3).std) > 0.3
