"""Images are fetched in the order of the batches, and what is fetched depends on nothing else."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from dino.data import ahead
from dino.data.ahead import Ahead, AnnouncedBatches, Place

PLACES = [Place("a.tar", (1,), 512 * number, 10) for number in range(40)]


async def fetch(place: Place) -> bytes:
    return str(place.offset).encode()


def content_of(place: Place) -> bytes:
    return str(place.offset).encode()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that runs in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_every_image_is_the_one_that_was_asked_for(loop: asyncio.AbstractEventLoop) -> None:
    reader = Ahead(loop, fetch)
    for start in range(0, 40, 4):
        reader.expect(PLACES[start : start + 8])
        for place in reversed(PLACES[start : start + 4]):
            assert reader.take(place) == content_of(place)
    assert reader.take(PLACES[0]) == b"0"  # never announced


def test_an_error_is_raised_where_the_image_is_asked_for(loop: asyncio.AbstractEventLoop) -> None:
    async def fail(place: Place) -> bytes:
        if place.offset == 512:
            raise OSError("broken")
        return content_of(place)

    reader = Ahead(loop, fail)
    reader.expect(PLACES[:3])
    assert reader.take(PLACES[0]) == b"0"
    with pytest.raises(OSError, match="broken"):
        reader.take(PLACES[1])
    assert reader.take(PLACES[2]) == b"1024"


def test_what_is_held_is_bounded_and_what_nobody_takes_is_forgotten(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "HELD", 25)
    reader = Ahead(loop, fetch)
    reader.expect(PLACES[:20])
    assert [reader.take(place) for place in PLACES[:3]] == [b"0", b"512", b"1024"]
    while len(reader.started) < 2:
        time.sleep(0.001)
    assert reader.held == 20
    reader.expect(PLACES[30:])
    assert reader.take(PLACES[30]) == content_of(PLACES[30])
    with reader.lock:
        assert reader.held <= 20 and not set(PLACES[:20]) & reader.started.keys()


def test_an_image_above_the_bound_is_fetched_alone(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "HELD", 5)
    reader = Ahead(loop, fetch)
    reader.expect(PLACES)
    assert [reader.take(place) for place in PLACES] == [content_of(place) for place in PLACES]


def test_as_many_requests_wait_as_there_may_be(
    loop: asyncio.AbstractEventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "REQUESTS", 3)
    answered, waiting, most = asyncio.Event(), set(), []

    async def fetch_late(place: Place) -> bytes:
        waiting.add(place)
        most.append(len(waiting))
        await answered.wait()
        waiting.remove(place)
        return content_of(place)

    reader = Ahead(loop, fetch_late)
    reader.expect(PLACES)
    while len(most) < 3:
        time.sleep(0.001)
    loop.call_soon_threadsafe(answered.set)
    assert [reader.take(place) for place in PLACES] == [content_of(place) for place in PLACES]
    assert max(most) == 3 and len(most) == len(PLACES)


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
