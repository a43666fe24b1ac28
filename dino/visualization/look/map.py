"""The map of all images by their features.

Shapes: N images, D width.
"""

from __future__ import annotations

import colorsys
import importlib
import importlib.util

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dino.visualization.look.page import Section, escape
from dino.visualization.look.views import Views
from dino.visualization.patch_colors import find_components

MAP_WIDTH, MAP_HEIGHT, MARGIN = 1000, 680, 30
CELL = 62  # one thumbnail per cell of the map, in its units
MAP_THUMBNAIL = 48
EDGES = (0.005, 0.995)  # quantiles at the map's edges: one odd image squeezes no others
MOST_COLORS = 20  # classes that colors tell apart
NO_CLASS = "#7d8794"
LEAST_IMAGES = 20  # that UMAP needs: it looks at the 15 nearest

Places = NDArray[np.float64]


def show_map(features: Tensor, views: Views) -> Section:
    """A map of all images by their features (N, D): a dot each, and thumbnails where they fit."""
    points, axes = project(features)
    low, high = np.quantile(points, EDGES, axis=0)
    share = np.clip((points - low) / np.maximum(high - low, 1e-12), 0, 1)
    size = np.array([MAP_WIDTH, MAP_HEIGHT]) - 2 * MARGIN
    places = MARGIN + share * size
    colors, key = _color_classes(views)
    dots = "".join(
        f'<circle cx="{x:.0f}" cy="{y:.0f}" r="4" fill="{fill}"/>'
        for (x, y), fill in zip(places, colors, strict=True)
    )
    thumbnails = "".join(
        _draw_thumbnail(views, index, places[index], colors[index]) for index in _thin(places)
    )
    view = f'viewBox="0 0 {MAP_WIDTH} {MAP_HEIGHT}"'
    body = f'{key}<div class="map"><svg {view} role="img">{dots}{thumbnails}</svg></div>'
    note = f"A dot for each of {len(points)} images; similar features are close together. {axes}"
    return Section("Map of the features", note, body)


def project(features: Tensor) -> tuple[Places, str]:
    """Two coordinates for each image, (N, D) -> (N, 2), by UMAP if it is installed, else by PCA.

    Also says what they are.
    """
    if importlib.util.find_spec("umap") is not None and len(features) >= LEAST_IMAGES:
        reducer = importlib.import_module("umap").UMAP(metric="cosine", random_state=0)
        return np.asarray(reducer.fit_transform(features.numpy()), np.float64), "By UMAP."
    scores, places = find_components(features, 2), np.zeros((len(features), 2))
    places[:, : scores.shape[1]] = scores.numpy()
    whole = float((features - features.mean(dim=0)).square().sum())
    share = float(scores.square().sum()) / max(whole, 1e-12)
    what = f"First two principal components, {share:.0%} of the variance; with umap-learn, UMAP."
    return places, what


def _thin(places: Places) -> list[int]:
    """The image nearest to the middle of each cell."""
    cells = np.floor(places / CELL)
    away = ((places / CELL - cells - 0.5) ** 2).sum(axis=1)
    order = np.argsort(away, kind="stable")
    _, first = np.unique(cells[order], axis=0, return_index=True)
    return [int(index) for index in order[np.sort(first)]]


def _draw_thumbnail(views: Views, index: int, place: Places, edge: str) -> str:
    x, y = place - MAP_THUMBNAIL / 2
    box = f'x="{x:.0f}" y="{y:.0f}" width="{MAP_THUMBNAIL}" height="{MAP_THUMBNAIL}"'
    picture = views.draw(index, MAP_THUMBNAIL)
    return (
        f'<g><title>{escape(views.name(index))}</title><image href="{picture}" {box}/>'
        f'<rect {box} rx="2" fill="none" stroke="{edge}" stroke-width="3"/></g>'
    )


def _color_classes(views: Views) -> tuple[list[str], str]:
    """A color for each image, that of its class if it has one, and the key to them."""
    source = views.source
    if source.labels is None or not 1 < len(source.classes) <= MOST_COLORS:
        return [NO_CLASS] * len(source), ""
    count = len(source.classes)
    palette = [_name_color(number / count, 0.42 + 0.16 * (number % 2)) for number in range(count)]
    names = "".join(
        f'<span><svg width="10" height="10"><circle cx="5" cy="5" r="5" fill="{fill}"/></svg> '
        f"{escape(name)}</span>"
        for name, fill in zip(source.classes, palette, strict=True)
    )
    return [palette[label] for label in source.labels], f'<p class="key">{names}</p>'


def _name_color(hue: float, lightness: float) -> str:
    """Write a color as HTML does; both values are 0 to 1."""
    parts = colorsys.hls_to_rgb(hue, lightness, 0.65)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)
