"""Images behind URLs are fetched before they are asked for, since the order of an epoch is known.

The batch sampler tells each loader process, beside the keys of its batch, those that it will get
next. One thread of that process fetches both in that order, many at a time: a thread for each
would cost as much again as its request. What is fetched never depends on time: an image that is
not there yet is waited for, or fetched for whoever asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset, Sampler

REQUESTS = 32  # of a loader process that wait for an answer: 350 images/s at 50 ms need 18
HELD = 2**26  # bytes of images that are fetched and not yet asked for; at least one image
ENOUGH = 64  # images ahead of the current batch


class Place(NamedTuple):
    """Where an image is: a shard, its stamp, and the offset and size in bytes."""

    shard: Any
    stamp: tuple[int, ...]
    offset: int
    size: int


class Ahead:
    """Fetches images in a thread of this process that ends with it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        fetch: Callable[[Place], Coroutine[Any, Any, bytes]],
    ) -> None:
        """Start nothing yet; `fetch` runs in the loop, which runs in another thread."""
        self.loop, self.fetch = loop, fetch
        self.lock = threading.Lock()
        self.waiting: deque[Place] = deque()
        self.started: dict[Place, Future[bytes]] = {}
        self.held = self.requests = 0
        self.tasks: set[asyncio.Task[None]] = set()  # a loop alone may forget its own

    def expect(self, places: Sequence[Place]) -> None:
        """Begin to fetch these images, in this order, and forget all others."""
        with self.lock:
            for place in self.started.keys() - set(places):
                self._forget(place)
            self.waiting = deque(place for place in places if place not in self.started)
        self.loop.call_soon_threadsafe(self._start)

    def take(self, place: Place) -> bytes:
        """The content of an image, which is then forgotten; raises what `fetch` raised."""
        with self.lock:
            future = self.started.get(place)
            if future is None:
                with contextlib.suppress(ValueError):
                    self.waiting.remove(place)
        if future is None:
            return asyncio.run_coroutine_threadsafe(self.fetch(place), self.loop).result()
        try:
            return future.result()
        finally:
            with self.lock:
                self._forget(place)
                is_held_up = self._may_start()
            if is_held_up:
                self.loop.call_soon_threadsafe(self._start)

    def _forget(self, place: Place) -> None:
        if self.started.pop(place, None):
            self.held -= place.size

    def _start(self) -> None:
        """Begin as many requests as there may be; runs in the loop."""
        with self.lock:
            while self._may_start():
                place = self.waiting.popleft()
                future = self.started[place] = Future()
                self.held += place.size
                self.requests += 1
                task = self.loop.create_task(self._answer(place, future))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def _answer(self, place: Place, future: Future[bytes]) -> None:
        try:
            future.set_result(await self.fetch(place))
        except BaseException as error:  # noqa: BLE001 - raised again by `take`
            future.set_exception(error)
        with self.lock:
            self.requests -= 1
        self._start()

    def _may_start(self) -> bool:
        if not self.waiting or self.requests == REQUESTS:
            return False
        return not self.held or self.held + self.waiting[0].size <= HELD


class Announced(list[Any]):
    """The keys of a batch; `upcoming` holds those that its loader process gets after it."""

    upcoming: list[Any]


class AnnouncedBatches(Sampler[list[Any]]):
    """Batches that say what comes after them; torch gives them to its processes in turn."""

    def __init__(self, batches: Iterable[list[Any]], workers: int) -> None:
        """Announce the batches for this number of loader processes."""
        self.batches, self.stride = batches, max(workers, 1)

    def __len__(self) -> int:
        """Batches of a pass."""
        assert isinstance(self.batches, Sized)
        return len(self.batches)

    def __iter__(self) -> Iterator[Announced]:
        """Yield the batches in order."""
        coming, rest = deque[list[Any]](), iter(self.batches)
        for first in rest:
            further = -(-ENOUGH // max(len(first), 1)) * self.stride
            coming.extend([first, *itertools.islice(rest, further - 1)])
            break
        while coming:
            batch = Announced(coming.popleft())
            coming.extend(itertools.islice(rest, 1))
            theirs = itertools.islice(coming, self.stride - 1, None, self.stride)
            batch.upcoming = [key for keys in theirs for key in keys]
            yield batch


class Expecting(Protocol):
    """A data set that can say which images its keys are."""

    def expect(self, keys: Iterable[Any]) -> None:
        """Tell its source which images are read next."""

    def __getitem__(self, key: Any) -> Any:
        """One item."""


class AnnouncedDataset(Dataset[Any]):
    """A data set whose images are fetched as they are announced."""

    def __init__(self, dataset: Expecting) -> None:
        """Wrap the data set."""
        self.dataset = dataset

    def __getitems__(self, keys: Announced) -> list[Any]:
        """The items of a batch, as torch's loader asks for them."""
        self.dataset.expect([*keys, *keys.upcoming])
        return [self.dataset[key] for key in keys]
