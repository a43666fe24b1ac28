"""When a run will end, said twice."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from dino.runtime.progress import Progress
from dino.training import estimate
from dino.training.estimate import EndEstimate


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> SimpleNamespace:
    caplog.set_level(logging.INFO)
    clock = SimpleNamespace(now=100.0, waits=0)
    monkeypatch.setattr("dino.training.estimate.time.monotonic", lambda: clock.now)
    return clock


def see(end: EndEstimate, clock: SimpleNamespace, *updates: int, pace: float) -> None:
    def wait() -> None:
        clock.waits += 1

    for update in updates:
        clock.now += pace
        end.see_update(update, wait)


def test_the_second_update_gives_the_first_estimate(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    end = EndEstimate(Progress(1010, "training", start=8))
    see(end, clock, 9, pace=60.0)  # loads and compiles
    see(end, clock, 10, 11, 12, pace=2.5)
    assert caplog.messages == [
        "first estimate, from the second update (2.5 s): training takes about 0:41:40"
    ]
    assert clock.waits == 2  # the device is not kept waiting after that


def test_a_hidden_or_finished_run_says_nothing(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    for progress in (Progress(50, "training", shown=False), Progress(2, "training")):
        end = EndEstimate(progress)
        see(end, clock, 1, 2, pace=1.0)
        for _ in range(3):
            end.see_line(progress.total if progress.shown else 10, 1.0)
    assert caplog.messages == []


def test_a_better_one_follows_when_loaders_and_graphs_have_settled(
    clock: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    end = EndEstimate(Progress(30, "training"))
    for line in (10, 20, 30):
        end.see_line(line, 2.0)
    (text,) = caplog.messages
    assert text.startswith("10 iterations left at 2 s: training ends in about 0:00:20, on ")
    assert end.lines > estimate.SETTLING_LINES
