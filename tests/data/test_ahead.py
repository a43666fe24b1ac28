"""Images are fetched in the order of the batches, and what is fetched depends on nothing else."""

import threading
import time

import pytest

from dino.data import ahead
from dino.data.ahead import Ahead, AnnouncedBatches, Place

PLACES = [Place("a.tar", (1,), 512 * number, 10) for number in range(40)]


def fetch(place: Place) -> bytes:
    return str(place.offset).encode()


def test_every_image_is_the_one_that_was_asked_for() -> None:
    reader = Ahead(fetch)
    for start in range(0, 40, 4):
        reader.expect(PLACES[start : start + 8])
        for place in reversed(PLACES[start : start + 4]):
            assert reader.take(place) == fetch(place)
    assert reader.take(PLACES[0]) == b"0"  # never announced


def test_an_error_is_raised_where_the_image_is_asked_for() -> None:
    def fail(place: Place) -> bytes:
        if place.offset == 512:
            raise OSError("broken")
        return fetch(place)

    reader = Ahead(fail)
    reader.expect(PLACES[:3])
    assert reader.take(PLACES[0]) == b"0"
    with pytest.raises(OSError, match="broken"):
        reader.take(PLACES[1])
    assert reader.take(PLACES[2]) == b"1024"


def test_what_is_held_is_bounded_and_what_nobody_takes_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ahead, "HELD", 25)
    fetched: list[Place] = []
    reader = Ahead(lambda place: fetched.append(place) or fetch(place))  # type: ignore[func-returns-value]
    reader.expect(PLACES[:20])
    assert [reader.take(place) for place in PLACES[:3]] == [b"0", b"512", b"1024"]
    while len(reader.started) < 2:
        time.sleep(0.001)
    assert reader.held == 20
    reader.expect(PLACES[30:])
    assert reader.take(PLACES[30]) == fetch(PLACES[30])
    with reader.changed:
        assert reader.held <= 20 and not set(PLACES[:20]) & reader.started.keys()


def test_an_image_above_the_bound_is_fetched_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "HELD", 5)
    reader = Ahead(fetch)
    reader.expect(PLACES)
    assert [reader.take(place) for place in PLACES] == [fetch(place) for place in PLACES]


def test_its_threads_do_not_keep_a_process() -> None:
    reader = Ahead(fetch)
    before = set(threading.enumerate())
    reader.expect(PLACES)
    assert {thread.daemon for thread in set(threading.enumerate()) - before} == {True}


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_a_loader_process_is_told_the_batches_that_it_gets_next(
    workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "ENOUGH", 4)
    plain = [[2 * number, 2 * number + 1] for number in range(20)]
    batches, stride = AnnouncedBatches(plain, workers), max(workers, 1)
    assert len(batches) == 20
    for _ in range(2):  # every epoch
        announced = list(batches)
        assert announced == plain
        for number, batch in enumerate(announced):
            theirs = plain[number + stride :: stride][:2]
            assert batch.upcoming == [key for keys in theirs for key in keys]


def test_no_batches_are_no_batches() -> None:
    assert list(AnnouncedBatches([], 2)) == []
