"""The embedded data set: ten kinds of textured shapes, drawn here, so that nothing is downloaded.

A class is a shape together with a texture. Everything else (colors, which of them is the brighter, pose, scale, place,
background, light, noise) is drawn anew for each image, so that pixels say little and the pattern says all.
Letters: S side of the image in pixels, G side of the finer drawing grid (G = 2 S).
"""

import fcntl
import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino.data.index import find_cache_root
from dino.errors import DataError
from dino.files import atomic_write

# Part of the folder's name: raise it whenever the same specification would give other pixels.
DEMO_VERSION = 1
SPLITS = ("train", "val")

# Drawing on a finer grid and averaging smooths the edges, whatever the shape.
_OVERSAMPLING = 2
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

_Points = NDArray[np.complex64]
_Mask = NDArray[np.bool_]
_Colors = NDArray[np.float32]
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DemoSpec:
    """What a demo data set is made of; equal specifications give equal files.

    Attributes:
        image_size: side of the square images, in pixels, >= 1.
        train_per_class: training images in each class, >= 1.
        val_per_class: validation images in each class, >= 1.
        seed: where all random draws start, >= 0.

    Raises:
        DataError: a value is below its bound.
    """

    image_size: int = 48
    train_per_class: int = 800
    val_per_class: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that no data set can have."""
        for name, value in asdict(self).items():
            bound = 0 if name == "seed" else 1
            if value < bound:
                raise DataError(f"demo data set: {name} is {value}", remedy=f"give {bound} or more")

    @property
    def folder_name(self) -> str:
        """Name of the cache sub-folder: one for each version, size, pair of counts and seed."""
        size, counts = f"{self.image_size}px", f"{self.train_per_class}x{self.val_per_class}"
        return f"demo-v{DEMO_VERSION}-{size}-{counts}-seed{self.seed}"


def _is_in_polygon(points: _Points, sides: int, inner_radius: float) -> _Mask:
    sector = 2 * np.pi / sides
    folded = np.angle(points) % sector - sector / 2
    return np.asarray(np.abs(points) * np.cos(folded) < inner_radius)


def _is_in_box(points: _Points, width: float, height: float) -> _Mask:
    return (np.abs(points.real) < width) & (np.abs(points.imag) < height)


def _is_in_heart(points: _Points) -> _Mask:
    across, along = points.real * 1.2, points.imag * 1.2 + 0.1
    bulge = across**2 + along**2 - 1
    return np.asarray(bulge**3 < across**2 * along**3)


def _is_in_star(points: _Points) -> _Mask:
    sector = 2 * np.pi / 5
    folded = np.abs(points) * np.exp(1j * np.abs(np.angle(points) % sector - sector / 2))
    tip, notch = 1.15, 0.62 * np.exp(0.5j * sector)
    # Inside is left of the edge that runs from the tip to the notch.
    return np.asarray(((notch - tip).conjugate() * (folded - tip)).imag > 0)


def _draw_bricks(points: _Points, _: np.random.Generator) -> _Mask:
    rows = points.imag * 1.2
    shifted = points.real * 0.6 + 0.5 * (np.floor(rows) % 2)
    return np.asarray((rows % 1 < 0.27) | (shifted % 1 < 0.14))


def _draw_speckles(points: _Points, rng: np.random.Generator) -> _Mask:
    cells = rng.random((64, 64)) < 0.45
    rows, columns = (
        np.floor(part * 4).astype(np.int64) % 64 for part in (points.imag, points.real)
    )
    return cells[rows, columns]


def _draw_blotches(points: _Points, rng: np.random.Generator) -> _Mask:
    # A sum of plane waves of one length in all directions: no orientation, but a typical size.
    waves = np.exp(2j * np.pi * rng.random((2, 8))).astype(np.complex64)
    field = sum(np.cos(4 * (points * turn).real + np.angle(phase)) for turn, phase in waves.T)
    return np.asarray(field) > 0


# Points (G, G) with about one period as the unit -> which of two colors they have, bool (G, G).
_TEXTURES: dict[str, Callable[[_Points, np.random.Generator], _Mask]] = {
    "blotched": _draw_blotches,
    "bricked": _draw_bricks,
    "checked": lambda points, _: (points.real * 0.7 % 1 < 0.5) ^ (points.imag * 0.7 % 1 < 0.5),
    "dotted": lambda points, _: (
        np.hypot(points.real * 1.1 % 1 - 0.5, points.imag * 1.1 % 1 - 0.5) < 0.3
    ),
    "gridded": lambda points, _: (points.real * 0.85 % 1 < 0.22) | (points.imag * 0.85 % 1 < 0.22),
    "rayed": lambda points, rng: np.angle(points) * rng.integers(6, 10) / (2 * np.pi) % 1 < 0.5,
    "ringed": lambda points, _: np.abs(points) % 1 < 0.5,
    "speckled": _draw_speckles,
    "striped": lambda points, _: points.real % 1 < 0.5,
    # The bands are wider than a stripe, or small images would lose the corners.
    "zigzag": lambda points, _: (
        (points.real * 0.8 + np.abs(points.imag * 0.45 % 1 - 0.5) * 1.6) % 1 < 0.5
    ),
}

# Points (G, G) in the object's own frame, where its radius is about 1 -> which of them lie inside, bool (G, G).
# In the order of the textures: each class has one of its own.
_SHAPES: dict[str, Callable[[_Points], _Mask]] = {
    # Moved aside, so that the middle of what is seen is the middle of the frame.
    "crescent": lambda points: (np.abs(points - 0.3) < 1.0) & (np.abs(points - 1.0) > 0.75),
    "cross": lambda points: _is_in_box(points, 1.0, 0.38) | _is_in_box(points, 0.38, 1.0),
    "triangle": lambda points: _is_in_polygon(points, 3, 0.6),
    "square": lambda points: _is_in_box(points, 0.8, 0.8),
    "ring": lambda points: np.abs(np.abs(points) - 0.7) < 0.32,
    "flower": lambda points: np.abs(points) < 0.8 + 0.25 * np.cos(5 * np.angle(points)),
    "hexagon": lambda points: _is_in_polygon(points, 6, 0.85),
    "star": _is_in_star,
    "disc": lambda points: np.abs(points) < 0.95,
    "heart": _is_in_heart,
}

# In alphabetical order, which is the order of the labels that an ImageFolder reader assigns.
CLASSES = tuple(f"{texture}_{shape}" for texture, shape in zip(_TEXTURES, _SHAPES, strict=True))


def draw_image(label: int, index: int, split: str, *, spec: DemoSpec) -> NDArray[np.uint8]:
    """Draw one image; the result depends on nothing but the arguments (and not on the counts in `spec`).

    Args:
        label: class number, 0 to 9, a position in CLASSES.
        index: number of the image within its class and split, >= 0.
        split: "train" or "val".
        spec: gives the size and the seed.

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
    """Paint class `label` as `rng` draws it, without noise: RGB, float32 (size, size, 3), about 0 to 1 but not cut."""
    points = _build_points(size)
    canvas = _paint_background(points, rng)
    _paint_object(canvas, points, CLASSES[label], rng)
    return canvas * (0.7 + 0.4 * _draw_field(points, rng))


def _build_points(size: int) -> _Points:
    """Centres of the cells of a square grid that spans -1 to 1 both ways: (size, size)."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1
    return (axis[None, :] + 1j * axis[:, None]).astype(np.complex64)


def _paint_background(points: _Points, rng: np.random.Generator) -> _Colors:
    """Scatter plain discs over soft colors: points (S, S) -> float (S, S, 3)."""
    canvas = _blend_colors(points, rng.uniform(0.15, 0.85, 2), rng)
    for _ in range(rng.integers(2, 5)):
        center = complex(*rng.uniform(-1, 1, 2))
        blob = np.abs(points - np.complex64(center)) < rng.uniform(0.08, 0.25)
        canvas[blob] = _draw_color(rng.uniform(0.15, 0.85), rng)
    return canvas


def _paint_object(canvas: _Colors, points: _Points, name: str, rng: np.random.Generator) -> None:
    """Paint the object of class `name` over canvas, float (S, S, 3), in place."""
    inside, pattern = _draw_object(len(points), name, rng)
    # Either side of the pattern may be the bright one, so that the mean color of a texture tells nothing.
    if rng.random() < 0.5:
        pattern = 1 - pattern
    dark = rng.uniform(0.05, 0.35)
    bright = rng.uniform(dark + 0.45, 0.95)
    first, second = (_blend_colors(points, (luma, luma), rng) for luma in (dark, bright))
    canvas += inside * (first + pattern * (second - first) - canvas)


def _draw_object(size: int, name: str, rng: np.random.Generator) -> tuple[_Colors, _Colors]:
    """Place shape and texture at random: the share of each pixel that they cover, two float (S, S, 1) in [0, 1]."""
    texture, shape = name.split("_")
    # In half sides of the image: the object covers about 0.8 to 1.2 of the side and a period 0.14 to 0.19 of it.
    radius, period = rng.uniform(0.8, 1.2), rng.uniform(0.27, 0.38)
    own = _build_points(_OVERSAMPLING * size) - np.complex64(complex(*rng.uniform(-0.5, 0.5, 2)))
    shape_turn, texture_turn = np.exp(2j * np.pi * rng.random(2)).astype(np.complex64)
    shift = np.complex64(complex(*rng.uniform(-0.5, 0.5, 2)))
    inside = _SHAPES[shape](own * (shape_turn / np.float32(radius)))
    pattern = _TEXTURES[texture](own * (texture_turn / np.float32(period)) + shift, rng)
    return _average_cells(inside), _average_cells(pattern)


def _average_cells(mask: _Mask) -> _Colors:
    """Share of the fine cells that are set in each pixel: bool (G, G) -> float (S, S, 1) in [0, 1]."""
    cells = mask.reshape(-1, _OVERSAMPLING, len(mask) // _OVERSAMPLING, _OVERSAMPLING)
    return np.asarray(cells.mean(axis=(1, 3)), dtype=np.float32)[..., None]


def _blend_colors(points: _Points, lumas: Iterable[float], rng: np.random.Generator) -> _Colors:
    """Two colors of the given brightness, blended along a soft random field: points (S, S) -> float (S, S, 3).

    Colors change across an image about as much as from image to image, or two crops would betray by their color that
    they come from one image, and a network would learn that instead of the pattern.
    """
    start, end = (_draw_color(luma, rng) for luma in lumas)
    return start + (0.5 + 0.5 * _draw_field(points, rng)) * (end - start)


def _draw_field(points: _Points, rng: np.random.Generator) -> _Colors:
    """A soft random pattern, a few waves about as long as the image: points (S, S) -> float (S, S, 1) in [-1, 1]."""
    turns, phases = np.exp(2j * np.pi * rng.random((2, 3))).astype(np.complex64)
    waves = [
        np.sin(3 * (points * turn).real + np.angle(phase))
        for turn, phase in zip(turns, phases, strict=True)
    ]
    return np.asarray(sum(waves) / 2, dtype=np.float32).clip(-1, 1)[..., None]


def _draw_color(luma: float, rng: np.random.Generator) -> _Colors:
    """Any hue at the brightness `luma`, which is in [0, 1]: float (3,) in [0, 1]."""
    tint = rng.random(3, dtype=np.float32)
    return np.asarray(luma + 0.6 * (tint - tint @ _LUMA), dtype=np.float32).clip(0, 1)


def build_demo(spec: DemoSpec | None = None, root: Path | None = None) -> Path:
    """Write the demo data set once, whole or not at all; a set that is already there is left as it is.

    Several processes may call this at once: one writes, the others wait for it.

    Args:
        spec: what to draw; the default set where None.
        root: folder to write under; where None it is $DINO_CACHE_DIR, else $XDG_CACHE_HOME/dino, else ~/.cache/dino.

    Returns:
        The folder that holds train/CLASS/*.png and val/CLASS/*.png.

    Raises:
        DataError: the folder cannot be written, or the disk is full.
    """
    spec = spec or DemoSpec()
    root = root or find_cache_root()
    folder = root / spec.folder_name
    try:
        if not folder.is_dir():
            root.mkdir(parents=True, exist_ok=True)
            with (root / f".{spec.folder_name}.lock").open("w") as lock:
                # The system frees this lock even when the process is killed, so none is ever stale.
                fcntl.flock(lock, fcntl.LOCK_EX)
                _write_once(folder, spec)
    except OSError as error:
        what = f"cannot write the demo data set to {folder}: {error.strerror or error}"
        raise DataError(
            f"{what}", remedy="set DINO_CACHE_DIR to a writable folder with free space"
        ) from error
    return folder


def _write_once(folder: Path, spec: DemoSpec) -> None:
    """Write every image beside `folder` and rename at the end; called with the lock held."""
    if folder.is_dir():
        return
    _logger.info("drawing the demo data set into %s", folder)
    with atomic_write(folder, alone=True) as partial:
        shutil.rmtree(
            partial, ignore_errors=True
        )  # a killed run may have left some of its files here
        for split, count in zip(SPLITS, (spec.train_per_class, spec.val_per_class), strict=True):
            _write_split(partial / split, count, spec)


def _write_split(folder: Path, count: int, spec: DemoSpec) -> None:
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for index in range(count):
            pixels = draw_image(label, index, folder.name, spec=spec)
            Image.fromarray(pixels).save(folder / name / f"{index:05d}.png")
