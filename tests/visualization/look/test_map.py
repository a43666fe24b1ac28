"""The map: places follow the features, thumbnails do not crowd, UMAP is used where it is
installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dino.data.sources import open_images
from dino.models.registry import build_backbone
from dino.visualization.look import map as look_map
from dino.visualization.look.map import CELL, MAP_HEIGHT, MAP_WIDTH, project, show_map
from dino.visualization.look.views import Views
from dino.weights.load import TrainedBackbone
from tests.pages import Page


def make_views(folder: Path, count: int, classes: int) -> Views:
    for index in range(count):
        path = folder / f"class<{index % classes}>" / f"{index:03}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    backbone = TrainedBackbone(
        module=build_backbone("vit_mini", img_size=16),
        arch="vit_mini",
        patch_size=16,
        image_size=16,
        in_chans=3,
        normalization=None,
    )
    return Views(open_images(str(folder)), backbone)


def draw_features(count: int) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.randn(count, 6, generator=rng).exp() * torch.tensor([9, 5, 0.1, 0.1, 0.1, 0.1])


def test_coordinates_are_the_two_longest_components() -> None:
    points, text = project(draw_features(40))
    expected = draw_features(40)[:, :2] - draw_features(40)[:, :2].mean(dim=0)
    for found, column in zip(points.T, expected.T.numpy(), strict=True):
        assert abs(np.corrcoef(found, column)[0, 1]) > 0.95
    assert "100% of the variance" in text and "umap-learn" in text
    assert project(torch.ones(1, 4))[0].tolist() == [[0.0, 0.0]]


def test_umap_is_used_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Umap:
        def __init__(self, **settings: object) -> None:
            assert settings == {"metric": "cosine", "random_state": 0}

        def fit_transform(self, features: np.ndarray) -> np.ndarray:
            return features[:, :2] * 2

    module = types.ModuleType("umap")
    module.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
    module.UMAP = Umap  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    points, text = project(draw_features(30))
    assert np.array_equal(points, draw_features(30)[:, :2].numpy() * 2) and text == "By UMAP."
    assert "principal" in project(draw_features(5))[1]  # too few for it


def test_every_image_is_a_dot_inside_and_a_cell_has_one_thumbnail(tmp_path: Path) -> None:
    views = make_views(tmp_path, 120, 3)
    page = Page(show_map(draw_features(120), views).body)
    xs, ys = (list(map(float, page.values("circle", name))) for name in ("cx", "cy"))
    assert len(xs) == 120 + 3  # and those of the key
    assert 0 <= min(xs) and max(xs) <= MAP_WIDTH and 0 <= min(ys) and max(ys) <= MAP_HEIGHT
    corners = zip(page.values("image", "x"), page.values("image", "y"), strict=True)
    cells = [(int((float(x) + 24) // CELL), int((float(y) + 24) // CELL)) for x, y in corners]
    assert len(cells) > 10 and len(set(cells)) >= 0.9 * len(cells)  # places are rounded
    assert {"class<0>", "class<1>", "class<2>"} <= {text.strip() for text in page.texts}
    assert len(set(page.values("rect", "stroke"))) == 3


def test_many_classes_have_one_color(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look_map, "MOST_COLORS", 2)
    body = show_map(draw_features(6), make_views(tmp_path, 6, 3)).body
    assert 'class="key"' not in body and body.count(look_map.NO_CLASS) >= 6
