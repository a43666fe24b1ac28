"""A service that is slow, gone or wrong costs lines, never the run."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import pytest

from dino.runtime.sinks import background
from dino.runtime.sinks.background import Background
from dino.runtime.sinks.base import Jpeg, Sink


class Recorder(Sink):
    """Keeps its calls; waits for `free` before each, fails at iteration 20."""

    place = "service"

    def __init__(self) -> None:
        self.calls: list[object] = []
        self.free = threading.Event()
        self.free.set()

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        self.free.wait()
        if step == 20:
            raise RuntimeError("the server\nsays no")
        self.calls.append((step, dict(values)))

    def add_images(self, images: Mapping[str, Jpeg], step: int) -> None:
        self.calls.append((step, list(images)))

    def add_settings(self, recipe: str, settings: Mapping[str, object], step: int) -> None:
        self.calls.append((step, recipe))

    def close(self, *, completed: bool) -> None:
        self.calls.append(completed)


def test_calls_arrive_in_order_and_the_end_waits_for_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = Recorder()
    sink = Background("service", lambda: service)
    sink.add_settings("lr: 1", {"lr": 1}, 0)
    sink.add_scalars({"loss": 1.0}, 10)
    sink.add_images({"crops": Jpeg(b"", 1, 1)}, 10)
    sink.close(completed=True)
    assert service.calls == [(0, "lr: 1"), (10, {"loss": 1.0}), (10, ["crops"]), True]
    assert caplog.messages == [] and not sink.thread.is_alive()


def test_an_error_costs_its_line_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    service = Recorder()
    sink = Background("service", lambda: service)
    for step in (10, 20, 20, 30):
        sink.add_scalars({"loss": 1.0}, step)
    sink.close(completed=False)
    assert service.calls == [(10, {"loss": 1.0}), (30, {"loss": 1.0}), False]
    assert caplog.messages == [
        "service does not take the run's lines: the server says no; lines are lost"
    ]


def test_a_service_that_cannot_be_reached_is_tried_again_with_the_next_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service, tries = Recorder(), []

    def begin() -> Sink:
        tries.append(1)
        if len(tries) < 3:
            raise ConnectionError("refused")
        return service

    sink = Background("service", begin)
    for step in (10, 30, 40):
        sink.add_scalars({"loss": 1.0}, step)
    sink.close(completed=True)
    assert service.calls == [(40, {"loss": 1.0}), True] and len(tries) == 3
    assert len(caplog.messages) == 1 and "refused" in caplog.text


def test_a_service_that_hangs_holds_up_neither_the_steps_nor_the_end(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "MOST_WAITING", 5)
    monkeypatch.setattr(background, "LAST_WAIT", 0.01)
    service = Recorder()
    service.free.clear()
    sink = Background("service", lambda: service)
    for step in range(100, 200):
        sink.add_scalars({"loss": 1.0}, step)
    sink.close(completed=True)
    assert caplog.messages == [
        "service does not take the run's lines: 5 lines wait for an answer; lines are lost"
    ]
    service.free.set()
    sink.thread.join()
    assert len(service.calls) == 1, "what was given up is not written later"
