"""The shapes and textures of the demo dataset, as functions of points in the plane.

Letters: G side of the drawing grid.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.complex64]
Mask = NDArray[np.bool_]


def _is_in_polygon(points: Points, sides: int, inner_radius: float) -> Mask:
    sector = 2 * np.pi / sides
    folded = np.angle(points) % sector - sector / 2
    return np.asarray(np.abs(points) * np.cos(folded) < inner_radius)


def _is_in_box(points: Points, width: float, height: float) -> Mask:
    return (np.abs(points.real) < width) & (np.abs(points.imag) < height)


def _is_in_heart(points: Points) -> Mask:
    across, along = points.real * 1.2, points.imag * 1.2 + 0.1
    bulge = across**2 + along**2 - 1
    return np.asarray(bulge**3 < across**2 * along**3)


def _is_in_star(points: Points) -> Mask:
    sector = 2 * np.pi / 5
    folded = np.abs(points) * np.exp(1j * np.abs(np.angle(points) % sector - sector / 2))
    tip, notch = 1.15, 0.62 * np.exp(0.5j * sector)
    # Inside is left of the edge that runs from the tip to the notch.
    return np.asarray(((notch - tip).conjugate() * (folded - tip)).imag > 0)


def _draw_bricks(points: Points, _: np.random.Generator) -> Mask:
    rows = points.imag * 1.2
    shifted = points.real * 0.6 + 0.5 * (np.floor(rows) % 2)
    return np.asarray((rows % 1 < 0.27) | (shifted % 1 < 0.14))


def _draw_speckles(points: Points, rng: np.random.Generator) -> Mask:
    cells = rng.random((64, 64)) < 0.45
    rows, columns = (
        np.floor(part * 4).astype(np.int64) % 64 for part in (points.imag, points.real)
    )
    return cells[rows, columns]


def _draw_blotches(points: Points, rng: np.random.Generator) -> Mask:
    # A sum of plane waves of one length in all directions: no orientation, but a typical scale.
    waves = np.exp(2j * np.pi * rng.random((2, 8))).astype(np.complex64)
    field = sum(np.cos(4 * (points * turn).real + np.angle(phase)) for turn, phase in waves.T)
    return np.asarray(field) > 0


# Points (G, G) in units of about one period -> which of two colors they have, bool (G, G).
TEXTURES: dict[str, Callable[[Points, np.random.Generator], Mask]] = {
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
    # The bands are wider than a stripe; otherwise small images would lose the corners.
    "zigzag": lambda points, _: (
        (points.real * 0.8 + np.abs(points.imag * 0.45 % 1 - 0.5) * 1.6) % 1 < 0.5
    ),
}

# Points (G, G) in the object's own frame, with a radius of about 1 -> inside or not, bool (G, G).
# In the order of the textures: the classes pair them up.
SHAPES: dict[str, Callable[[Points], Mask]] = {
    # Shifted, so that the visible part is centered in the frame.
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
