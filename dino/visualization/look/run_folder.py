"""What a run's folder shows of the run: curves of log.txt, a sheet of crops, its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dino.config import RECIPE
from dino.data.decode import open_picture, to_levels
from dino.files import read_bounded
from dino.runtime.log_file import read_history
from dino.runtime.metrics import LOG_FILE
from dino.visualization.look.page import Section, escape
from dino.visualization.look.views import draw
from dino.weights.read import is_name

CROPS = "crops.png"
CROPS_SIDE = 1600  # pixels, longest side of the sheet of crops in the page
WIDTH, HEIGHT, EDGE = 240, 90, 6  # of a chart, in its units
MOST_POINTS = 400  # of a curve
MOST_BYTES = 2**20  # of a recipe


def find_run(word: str | None) -> Path | None:
    """The folder of the run that wrote the weights that `pretrained_weights` names, or None."""
    if word is None or is_name(word):
        return None
    folder = Path(word) if Path(word).is_dir() else Path(word).parent
    return folder if (folder / LOG_FILE).is_file() else None


def show_run(folder: Path) -> list[Section]:
    """The sections of a run's folder; what is not there is left out."""
    return [*show_curves(folder), *show_crops(folder), *show_settings(folder)]


def show_curves(folder: Path) -> list[Section]:
    """A chart for every number of log.txt."""
    series = collect_series(read_history(folder / LOG_FILE))
    charts = "".join(draw_chart(name, points) for name, points in series.items())
    note = "Every number of log.txt by epoch; each chart from its least to its greatest value."
    return [Section("Curves", note, f'<div class="charts">{charts}</div>')] if series else []


def collect_series(history: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """The finite numbers of a log by name, nested ones too, each as (epoch, value)."""
    series: dict[str, list[tuple[float, float]]] = {}
    for line in history:
        for name, value in _flatten(line):
            if name != "epoch" and math.isfinite(value):
                series.setdefault(name, []).append((float(line["epoch"]), value))
    return series


def _flatten(values: Mapping[str, Any], before: str = "") -> list[tuple[str, float]]:
    flat: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat += _flatten(value, f"{before}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat.append((before + name, float(value)))
    return flat


def draw_chart(name: str, points: Sequence[tuple[float, float]]) -> str:
    """Draw one curve with its name, its range and its last value."""
    step = -(-len(points) // MOST_POINTS)
    shown = np.array([*points[:-1:step], points[-1]])
    low, high = shown.min(axis=0), shown.max(axis=0)
    share = (shown - low) / np.where(high > low, high - low, 1)
    share[:, 1] = 1 - np.where(high[1] > low[1], share[:, 1], 0.5)
    places = EDGE + share * (np.array([WIDTH, HEIGHT]) - 2 * EDGE)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    x, y = places[-1]
    return (
        f"<figure><figcaption><b>{escape(name)}</b> {points[-1][1]:.4g}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="5" fill="#f6f6f3"/>'
        f'<polyline points="{line}" fill="none" stroke="#2a5db0" stroke-width="2"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#2a5db0"/></svg>'
        f"<figcaption>{low[1]:.4g} to {high[1]:.4g}</figcaption></figure>"
    )


def show_crops(folder: Path) -> list[Section]:
    """The crops that the run trained on, if it left a sheet of them."""
    path = folder / CROPS
    if not path.is_file():
        return []
    with open_picture(path) as picture:
        picture.thumbnail((CROPS_SIDE, CROPS_SIDE))
        sheet = draw(to_levels(picture, 3))
    body = f'<img src="{sheet}" alt="crops">'
    return [Section("Crops", "Crops of some images, as the network got them.", body)]


def show_settings(folder: Path) -> list[Section]:
    """The run's settings."""
    if not (folder / RECIPE).is_file():
        return []
    text = read_bounded(folder / RECIPE, MOST_BYTES).decode("utf-8", "backslashreplace")
    lines = "\n".join(map(escape, text.splitlines()))
    body = f"<details><summary>{RECIPE}</summary><pre>{lines}</pre></details>"
    return [Section("Settings", "Every setting of the run.", body)]
