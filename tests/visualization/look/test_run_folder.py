"""A run's folder in the page: a chart of every number of its log, the crops, the settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.visualization.look.page import build_page, write_page
from dino.visualization.look.run_folder import (
    MOST_POINTS,
    collect_series,
    draw_chart,
    find_run,
    show_run,
)
from tests.pages import Page, read_page

LOG = [
    {"train_loss": 4.0, "epoch": 0, "train_lr": 0.1, "own_view": None, "note": "x", "best": True},
    {"train_loss": 2.0, "epoch": 1, "train_lr": 0.1, "own_view": 55.5, "knn": {"top1": 40}},
]


def make_run(folder: Path) -> Path:
    lines = [*map(json.dumps, LOG), "a note of the user", '{"train_loss": 1']
    (folder / "log.txt").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text("# mine\narch: vit_mini # <b>\n")
    Image.new("RGB", (3000, 20), "red").save(folder / "crops.png")
    return folder


def test_every_number_of_the_log_has_a_chart_and_nothing_else(tmp_path: Path) -> None:
    assert collect_series(LOG) == {
        "train_loss": [(0.0, 4.0), (1.0, 2.0)],
        "train_lr": [(0.0, 0.1), (1.0, 0.1)],
        "own_view": [(1.0, 55.5)],
        "knn.top1": [(1.0, 40.0)],
    }
    page = read_page(write_page(tmp_path, build_page("run", {}, show_run(make_run(tmp_path)))))
    assert page.texts.count("train_loss") == 1 and "2 to 4" in page.text
    assert len(page.values("polyline", "points")) == 4
    assert "arch: vit_mini # <b>" in page.text
    assert [attrs for tag, attrs in page.tags if tag == "img"][0]["alt"] == "crops"


def test_a_curve_goes_down_where_the_numbers_do_and_its_ends_stay() -> None:
    values = np.linspace(5, 1, 10 * MOST_POINTS + 3)
    page = Page(draw_chart("loss", list(enumerate(values))))
    [line] = page.values("polyline", "points")
    points = [tuple(map(float, pair.split(","))) for pair in line.split()]
    assert len(points) <= MOST_POINTS + 1
    assert points[0] == (6.0, 6.0) and points[-1] == (234.0, 84.0)
    assert points == sorted(points)


def test_one_number_and_equal_numbers_lie_in_the_middle() -> None:
    for points in ([(3.0, 7.0)], [(0.0, 7.0), (1.0, 7.0)]):
        [line] = Page(draw_chart("x", points)).values("polyline", "points")
        assert {pair.split(",")[1] for pair in line.split()} == {"45.0"}


@pytest.mark.parametrize("word", ["checkpoint.pth", "teacher_backbone.pth", ""])
def test_weights_in_a_folder_with_a_log_are_a_runs(word: str, tmp_path: Path) -> None:
    assert find_run(str(tmp_path / word)) is None
    assert find_run(str(make_run(tmp_path) / word)) == tmp_path


def test_a_name_is_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(make_run(tmp_path))
    assert find_run(None) is find_run("timm:vit_tiny") is find_run("hub:dino_vits16") is None


def test_a_folder_with_only_a_log_has_only_curves(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text(json.dumps(LOG[1]))
    assert [section.title for section in show_run(tmp_path)] == ["Curves"]
