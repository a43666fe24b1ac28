"""The built-in demo dataset: ten classes of textured shapes, drawn locally without any download.

A class is a shape combined with a texture. Everything else (colors, which color is brighter, pose,
scale, position, background, light, noise) is drawn again for each image, so that single pixels
carry little information and the pattern carries all of it.
Letters: S side of the image in pixels, G side of the finer drawing grid (G = 2 S).
"""

import logging
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino.cache import check_owner, find_cache_root, hold_lock
from dino.data.demo_patterns import SHAPES, TEXTURES, Mask, Points
from dino.errors import DataError
from dino.files import atomic_write

# Part of the folder's name. Raise it whenever the same specification would yield other pixels.
DEMO_VERSION = 1
SPLITS = ("train", "val")

# Drawing on a finer grid and averaging smooths the edges of any shape.
_OVERSAMPLING = 2
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

_Colors = NDArray[np.float32]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DemoSpec:
    """Parameters of a demo dataset; equal specifications yield equal files.

    Attributes:
        image_size: Side of the square images in pixels, >= 1.
        train_per_class: Training images per class, >= 1.
        val_per_class: Validation images per class, >= 1.
        seed: Seed of all random draws, >= 0.

    Raises:
        DataError: A value is below its bound.
    """

    image_size: int = 48
    train_per_class: int = 800
    val_per_class: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Reject values below their bounds."""
        for name, value in asdict(self).items():
            bound = 0 if name == "seed" else 1
            if value < bound:
                raise DataError(f"demo data set: {name} must be >= {bound} (got {value})")

    @property
    def folder_name(self) -> str:
        """Name of the cache sub-folder, unique to version, size, both counts and seed."""
        size, counts = f"{self.image_size}px", f"{self.train_per_class}x{self.val_per_class}"
        return f"demo-v{DEMO_VERSION}-{size}-{counts}-seed{self.seed}"


# In alphabetical order, which is the order of the labels that an ImageFolder reader assigns.
CLASSES = tuple(f"{texture}_{shape}" for texture, shape in zip(TEXTURES, SHAPES, strict=True))


def draw_image(label: int, index: int, split: str, *, spec: DemoSpec) -> NDArray[np.uint8]:
    """Draw one image; it depends on the arguments only, and not on the counts in `spec`.

    Args:
        label: Class number, 0 to 9, an index into CLASSES.
        index: Number of the image within its class and split, >= 0.
        split: "train" or "val".
        spec: Specifies the size and the seed.

    Returns:
        RGB image, uint8 (S, S, 3).

    Raises:
        ValueError: label, index or split is out of range.
    """
    if label not in range(len(CLASSES)) or index < 0 or split not in SPLITS:
        raise ValueError(f"no demo image has label {label}, index {index} and split {split!r}")
    rng = np.random.default_rng([spec.seed, SPLITS.index(split), label, index])
    canvas = paint(label, spec.image_size, rng)
    canvas += rng.normal(0, 0.015, canvas.shape)
    return np.asarray(np.rint(canvas.clip(0, 1) * 255), dtype=np.uint8)


def paint(label: int, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Paint class `label` without noise: RGB, float32 (size, size, 3), about 0 to 1, unclipped."""
    points = _build_points(size)
    canvas = _paint_background(points, rng)
    _paint_object(canvas, points, CLASSES[label], rng)
    return canvas * (0.7 + 0.4 * _draw_field(points, rng))


def _build_points(size: int) -> Points:
    """Centers of the cells of a square grid from -1 to 1 on both axes: (size, size)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return (axis[None, :] + 1j * axis[:, None]).astype(np.complex64)


def _paint_background(points: Points, rng: np.random.Generator) -> _Colors:
    """Scatter plain discs over soft colors: points (S, S) -> float (S, S, 3)."""
    canvas = _blend_colors(points, rng.uniform(0.15, 0.85, 2), rng)
    for _ in range(rng.integers(2, 5)):
        center = complex(*rng.uniform(-1, 1, 2))
        blob = np.abs(points - np.complex64(center)) < rng.uniform(0.08, 0.25)
        canvas[blob] = _draw_color(rng.uniform(0.15, 0.85), rng)
    return canvas


def _paint_object(canvas: _Colors, points: Points, name: str, rng: np.random.Generator) -> None:
    """Paint an object of class `name` over canvas, float (S, S, 3), in place."""
    inside, pattern = _draw_object(len(points), name, rng)
    # Either color of the pattern may be the brighter one, so a texture's mean color is no cue.
    if rng.random() < 0.5:
        pattern = 1 - pattern
    dark = rng.uniform(0.05, 0.35)
    bright = rng.uniform(dark + 0.45, 0.95)
    first, second = (_blend_colors(points, (luma, luma), rng) for luma in (dark, bright))
    canvas += inside * (first + pattern * (second - first) - canvas)


def _draw_object(size: int, name: str, rng: np.random.Generator) -> tuple[_Colors, _Colors]:
    """Place shape and texture at random: each one's coverage, two float (S, S, 1) in [0, 1]."""
    texture, shape = name.split("_")
    # In half sides: the object covers about 0.8 to 1.2 of the side, and a period 0.14 to 0.19.
    radius, period = rng.uniform(0.8, 1.2), rng.uniform(0.27, 0.38)
    own = _build_points(_OVERSAMPLING * size) - np.complex64(complex(*rng.uniform(-0.5, 0.5, 2)))
    shape_turn, texture_turn = np.exp(2j * np.pi * rng.random(2)).astype(np.complex64)
    shift = np.complex64(complex(*rng.uniform(-0.5, 0.5, 2)))
    inside = SHAPES[shape](own * (shape_turn / np.float32(radius)))
    pattern = TEXTURES[texture](own * (texture_turn / np.float32(period)) + shift, rng)
    return _average_cells(inside), _average_cells(pattern)


def _average_cells(mask: Mask) -> _Colors:
    """Fraction of each pixel's fine cells that are set: bool (G, G) -> float (S, S, 1)."""
    cells = mask.reshape(-1, _OVERSAMPLING, len(mask) // _OVERSAMPLING, _OVERSAMPLING)
    return np.asarray(cells.mean(axis=(1, 3)), dtype=np.float32)[..., None]


def _blend_colors(points: Points, lumas: Iterable[float], rng: np.random.Generator) -> _Colors:
    """Blend two colors of given brightness along a soft field: points (S, S) -> float (S, S, 3).

    Colors vary within an image about as much as between images. Otherwise two crops of one image
    could be matched by color, and a network would learn that instead of the pattern.
    """
    start, end = (_draw_color(luma, rng) for luma in lumas)
    return start + (0.5 + 0.5 * _draw_field(points, rng)) * (end - start)


def _draw_field(points: Points, rng: np.random.Generator) -> _Colors:
    """A soft random field of waves about as long as the image: -> float (S, S, 1) in [-1, 1]."""
    turns, phases = np.exp(2j * np.pi * rng.random((2, 3))).astype(np.complex64)
    waves = [
        np.sin(3 * (points * turn).real + np.angle(phase))
        for turn, phase in zip(turns, phases, strict=True)
    ]
    return np.asarray(sum(waves) / 2, dtype=np.float32).clip(-1, 1)[..., None]


def _draw_color(luma: float, rng: np.random.Generator) -> _Colors:
    """A random hue at brightness `luma` in [0, 1]: float (3,) in [0, 1]."""
    tint = rng.random(3, dtype=np.float32)
    return np.asarray(luma + 0.6 * (tint - tint @ _LUMA), dtype=np.float32).clip(0, 1)


def build_demo(spec: DemoSpec | None = None, root: Path | None = None) -> Path:
    """Write the demo dataset atomically, unless it exists already.

    Several processes may call this at once: one writes, the others wait for it.

    Args:
        spec: What to draw; None for the default.
        root: Parent folder; None for $DINO_CACHE_DIR, else $XDG_CACHE_HOME/dino, else
            ~/.cache/dino.

    Returns:
        The folder that contains train/CLASS/*.png and val/CLASS/*.png.

    Raises:
        DataError: The folder cannot be written or is another user's, or the disk is full.
    """
    spec = spec or DemoSpec()
    root = root or find_cache_root()
    folder = root / spec.folder_name
    try:
        if not folder.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            with hold_lock(root / f".{spec.folder_name}.lock"):
                _write_once(folder, spec)
        check_owner(folder)
    except OSError as error:
        raise DataError(
            f"cannot write the demo data set to {folder}: {error.strerror or error}",
            remedy="set DINO_CACHE_DIR to a writable folder of your own with free space",
        ) from error
    return folder


def is_demo(folder: Path) -> bool:
    """Whether a folder is the default demo dataset, or below it."""
    return folder.is_relative_to(find_cache_root() / DemoSpec().folder_name)


def _write_once(folder: Path, spec: DemoSpec) -> None:
    """Write every image to a temporary folder and rename it; the caller holds the lock."""
    if folder.is_dir():
        return
    _logger.info("drawing the demo data set into %s", folder)
    with atomic_write(folder, alone=True) as partial:
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
        partial.mkdir()  # fails on a link that somebody else has left
        for split, count in zip(SPLITS, (spec.train_per_class, spec.val_per_class), strict=True):
            _write_split(partial / split, count, spec)


def _write_split(folder: Path, count: int, spec: DemoSpec) -> None:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = draw_image(label, index, folder.name, spec=spec)
            Image.fromarray(pixels).save(folder / name / f"{index:05d}.png")
