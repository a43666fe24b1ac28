"""Images behind URLs are fetched before they are asked for, since the order of an epoch is known.

The batch sampler tells each loader process, beside the keys of its batch, those that it will get
next. Threads of that process fetch both in that order. What they fetch never depends on time: an
image that is not there yet is waited for, or fetched by whoever asks.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from torch.utils.data import Dataset, Sampler

THREADS = 32  # of a loader process, each waiting for one answer: 350 images/s at 50 ms need 18
HELD = 2**26  # bytes of images that are fetched and not yet asked for; at least one image
ENOUGH = 64  # images ahead of the current batch


class Place(NamedTuple):
    """Where an image is: a shard, its stamp, and the offset and size in bytes."""

    shard: Any
    stamp: tuple[int, ...]
    offset: int
    size: int


class Ahead:
    """Fetches images in threads of this process that end with it."""

    def __init__(self, fetch: Callable[[Place], bytes]) -> None:
        """Start nothing yet; `fetch` is called in several threads at once."""
        self.fetch = fetch
        self.changed = threading.Condition()
        self.waiting: deque[Place] = deque()
        self.started: dict[Place, Future[bytes]] = {}
        self.held = self.threads = 0

    def expect(self, places: Sequence[Place]) -> None:
        """Begin to fetch these images, in this order, and forget all others."""
        with self.changed:
            for place in self.started.keys() - set(places):
                self._forget(place)
            self.waiting = deque(place for place in places if place not in self.started)
            for _ in range(self.threads, THREADS):
                # Daemons, so that nobody waits for a slow server when the process ends.
                threading.Thread(target=self._work, daemon=True).start()
            self.threads = THREADS
            self._wake_one()

    def take(self, place: Place) -> bytes:
        """The content of an image, which is then forgotten; raises what `fetch` raised."""
        with self.changed:
            future = self.started.get(place)
            if future is None:
                with contextlib.suppress(ValueError):
                    self.waiting.remove(place)
        if future is None:
            return self.fetch(place)
        try:
            return future.result()
        finally:
            with self.changed:
                self._forget(place)
                self._wake_one()

    def _forget(self, place: Place) -> None:
        if self.started.pop(place, None):
            self.held -= place.size

    def _work(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(self._may_start)
                place = self.waiting.popleft()
                future = self.started[place] = Future()
                self.held += place.size
                self._wake_one()
            try:
                future.set_result(self.fetch(place))
            except BaseException as error:  # noqa: BLE001 - raised again by `take`
                future.set_exception(error)

    def _wake_one(self) -> None:
        """Each thread wakes the next one; waking all for every image would cost more than it."""
        if self._may_start():
            self.changed.notify()

    def _may_start(self) -> bool:
        return bool(self.waiting) and (not self.held or self.held + self.waiting[0].size <= HELD)


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
