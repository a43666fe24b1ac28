"""The golden numbers that travel: how large they are, what their page names, and those that are
made here."""

import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import dino.golden

FOLDER = Path(dino.golden.__file__).parent
MAKER = FOLDER.parents[1] / "tools" / "make_golden_augment.py"
Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def maker() -> dict[str, Callable[..., Arrays]]:
    """The names of the script that wrote augment.npz."""
    return runpy.run_path(str(MAKER))


def is_computed(key: str) -> bool:
    return key.endswith(("/image", "/normalised"))


def compute_distance(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.abs(found.astype(float) - expected)


def test_the_files_are_those_of_the_page_and_small_enough_to_travel() -> None:
    files = [path for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".pyc"]
    assert sum(path.stat().st_size for path in files) < 5_000_000
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == sorted(path.name for path in files if path.suffix == ".npz")


def test_the_script_asks_for_what_is_stored(maker: dict[str, Callable[..., Arrays]]) -> None:
    """Another numpy may compute a sine or a root otherwise, so that a pixel at an edge falls to its
    other side."""
    chosen, stored = maker["choose_parameters"](), dino.golden.load("augment")
    photo, expected = chosen.pop("0/photo"), stored.pop("0/photo")
    assert photo.shape == expected.shape and photo.dtype == expected.dtype
    assert (compute_distance(photo, expected) > 1).mean() < 1e-3
    assert chosen.keys() == {key for key in stored if not is_computed(key)}
    for key, value in chosen.items():
        assert np.array_equal(value, stored[key]), key


def test_the_script_makes_what_is_stored(
    maker: dict[str, Callable[..., Arrays]], augment_numbers: Arrays
) -> None:
    """To the bit with Pillow 13.0 and torchvision 0.29, of the photographs too; others may round to
    the next level."""
    made = maker["compute"](
        {key: value for key, value in augment_numbers.items() if not is_computed(key)}
    )
    assert made.keys() == {key for key in augment_numbers if is_computed(key)}
    for key, value in made.items():
        expected = augment_numbers[key]
        assert value.shape == expected.shape and value.dtype == expected.dtype, key
        # The mean, since a chain's contrast and hue may carry one level of a pixel to two or three.
        levels = compute_distance(value, expected) * (
            255 * 0.229 if key.endswith("/normalised") else 1
        )
        assert levels.mean() <= 0.5, key
        assert "/chain/" in key or levels.max() <= 1, key
