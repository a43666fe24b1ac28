"""What is scored when, how hard the views are, and what a resumed run keeps of it."""

from typing import Any

import pytest
from torch import nn

from dino.errors import CheckpointError
from dino.training.config import RunConfig
from dino.training.scores import Scorers, Scores, check_scores

EMPTY = {"level": 0, "start": {}, "latest": {}, "best": {}, "rose": False}


def make_scores(found: list[float], *, images: int = 1000, **settings: Any) -> Scores:
    """Scores of a network that finds so many of its own views, at each level of hardness."""
    run = RunConfig(epochs=7, own_view_images=250, **settings)
    scorers = Scorers(
        knn=lambda backbone: {"knn_top1": 1.0},
        own_view=lambda backbone, level: {"own_view": found[level], "rankme": 5.0},
    )
    return Scores(run, scorers, images=images)


@pytest.mark.parametrize(
    ("found", "level"),
    [([90.0, 1, 1], 0), ([90.1, 40, 1], 1), ([99, 99, 30], 2), ([99, 99, 99], 2)],
)
def test_views_get_harder_until_the_untrained_network_finds_few(
    found: list[float], level: int
) -> None:
    scores = make_scores(found)
    assert scores.begin(nn.Identity()) == {"own_view": found[level], "rankme": 5.0}
    assert scores.state.level == level and scores.state.start["own_view"] == found[level]


@pytest.mark.parametrize(
    ("images", "due"),
    [(2500, range(7)), (2499, (1, 3, 5, 6)), (1000, (2, 5, 6)), (100, (6,))],
)
def test_own_views_are_scored_after_ten_trained_images_each_and_at_the_end(
    images: int, due: Any
) -> None:
    scores = make_scores([50.0], images=images)
    found = [epoch for epoch in range(7) if "own_view" in scores(nn.Identity(), epoch)]
    assert found == [*due]


def test_labels_are_asked_as_often_as_set() -> None:
    scores = make_scores([50.0], eval_knn_every=3)
    assert [epoch for epoch in range(7) if scores.reads_images(epoch)] == [2, 5]
    assert scores(nn.Identity(), 2) == {"knn_top1": 1.0, "own_view": 50.0, "rankme": 5.0}
    assert scores(nn.Identity(), 6) == {"own_view": 50.0, "rankme": 5.0}


def test_without_scorers_nothing_is_scored() -> None:
    scores = Scores(RunConfig(), Scorers(), images=10)
    assert scores.begin(nn.Identity()) == scores(nn.Identity(), 99) == {}
    check_scores(scores.state_dict(), "FILE")


def test_a_resumed_run_knows_the_untrained_network_and_its_views() -> None:
    scores = make_scores([95.0, 20.0, 0.0])
    scores.begin(nn.Identity())
    scores(nn.Identity(), 6)
    resumed = make_scores([95.0, 30.0, 0.0])
    check_scores(scores.state_dict(), "FILE")
    resumed.load_state_dict(scores.state_dict())
    assert resumed.state == scores.state
    assert resumed(nn.Identity(), 6)["own_view"] == 30.0  # at the same level
    resumed.load_state_dict({})  # of a checkpoint from before there were scores
    assert resumed.state.level == 0 and resumed.state.start == {}


@pytest.mark.parametrize(
    "stored",
    [
        1,
        {"level": 0},
        {**EMPTY, "level": 3},
        {**EMPTY, "latest": {"own_view": "x"}},
        {**EMPTY, "start": []},
        {**EMPTY, "rose": 1},
    ],
    ids=str,
)
def test_other_contents_of_a_checkpoint_are_refused(stored: Any) -> None:
    with pytest.raises(CheckpointError, match="^FILE: its resume"):
        check_scores(stored, "FILE")


@pytest.mark.parametrize(("kept", "name"), [("own_view", "own_view"), ("knn", "knn_top1")])
def test_the_best_score_is_the_highest_so_far(kept: str, name: str) -> None:
    found = iter([50.0, 60.0, 60.0, float("nan"), 55.0, 70.0])
    run = RunConfig(epochs=9, eval_knn_every=1, own_view_images=1, keep_best=kept)
    score = Scorers(
        knn=lambda backbone: {"knn_top1": next(found) if kept == "knn" else 0.0},
        own_view=lambda backbone, level: {"own_view": 0.0 if kept == "knn" else next(found)},
    )
    scores, rose = Scores(run, score, images=10), []
    for epoch in range(6):
        scores(nn.Identity(), epoch)
        rose.append(scores.take_rise())
    assert rose == [True, True, False, False, False, True] and scores.state.best == {name: 70.0}


def test_another_score_to_keep_starts_anew() -> None:
    run = RunConfig(epochs=9, own_view_images=1, keep_best="own_view")
    scores = Scores(run, Scorers(own_view=lambda backbone, level: {"own_view": 5.0}), images=10)
    scores.load_state_dict({**EMPTY, "best": {"knn_top1": 80.0}})
    scores(nn.Identity(), 0)
    assert scores.state.best == {"own_view": 5.0} and scores.state.rose


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (10.0, 20.0, "own views found: 20.0 %, before training 10.0 %: better by this score"),
        (20.0, 10.0, "own views found: 10.0 %, before training 20.0 %: worse by this score"),
        (10.0, 14.0, "before training 10.0 %: no clear difference (within 5.8)"),
        (0.0, 0.0, "no clear difference"),
        (10.0, float("nan"), "no verdict"),
    ],
)
def test_the_verdict_says_no_more_than_the_score_shows(
    before: float, after: float, verdict: str
) -> None:
    """Of 250 images, 2 sqrt((10 * 90 + 14 * 86) / 250) is 5.8."""
    scores = make_scores([before])
    scores.begin(nn.Identity())
    assert "no verdict" in scores.judge()
    scores.state.latest = {"own_view": after}
    assert verdict in scores.judge()


def test_a_run_without_scores_gets_no_verdict() -> None:
    assert Scores(RunConfig(), Scorers(), images=10).judge().startswith("no verdict")
