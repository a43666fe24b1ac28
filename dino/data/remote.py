"""Tar shards behind URLs; each read is one request for exactly the bytes of an image.

A shard's size and its ETag (or time of change) are noted when it is listed, and every later answer
must have the same.
"""

from __future__ import annotations

import asyncio
import functools
import glob
import io
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PosixPath
from typing import Any, BinaryIO

from dino.data.ahead import Ahead, Place
from dino.data.index import Stamp
from dino.data.listing import show
from dino.data.remote_cache import ImageCache, read_limit
from dino.data.remote_requests import (
    TRIES,
    TRIES_AT_START,
    Files,
    Unreachable,
    call,
    find_loop,
    hide_secrets,
    read_range,
    retry,
    retry_in_loop,
    stamp_of,
)
from dino.data.shard_names import ENDING, check_names, expand_braces, is_pattern
from dino.errors import DataError

URL = re.compile(r"(?!file:)[a-z][a-z0-9+.-]+://", re.IGNORECASE)
CHUNK = 2**22  # bytes of a request while headers are scanned


class UrlPath(PosixPath):
    """A URL where a path is expected: it has a name and a parent, and keeps its slashes."""

    def __str__(self) -> str:
        """The URL; a path alone would have one slash after the scheme."""
        return re.sub("^([^/]+:)/(?!/)", r"\1//", super().__str__())


@dataclass(frozen=True)
class RemoteShard:
    """A tar file behind a URL."""

    url: str
    is_far = True

    def __str__(self) -> str:
        """The URL without what is nobody else's business."""
        return hide_secrets(self.url)

    @property
    def place(self) -> str:
        """Its URL, whose signature may change."""
        return str(self)

    def stamp(self) -> Stamp:
        """Its size and what identifies its content.

        Raises:
            Unreachable: The server does not answer, refuses, or does not know it.
        """

        def ask(files: Files, path: str) -> Stamp:
            stamp = stamp_of(call(files, "info", path))
            if not stamp[0]:
                raise ValueError("it is empty, or the server does not tell its size")
            return stamp

        return retry(self.url, ask, TRIES_AT_START)

    def open(self, stamp: Stamp) -> BinaryIO:
        """Open it for scanning; every read checks that it still has this stamp."""
        return io.BufferedReader(RangedFile(self, stamp), CHUNK)

    def read(self, offset: int, size: int, stamp: Stamp) -> bytes:
        """Read an image from the cache, or as `fetch`, unless that is under way."""
        return _ahead(os.getpid()).take(Place(self, stamp, offset, size))

    def fetch(self, offset: int, size: int, stamp: Stamp) -> bytes:
        """Read `size` bytes from byte `offset` on.

        Raises:
            Unreachable: The server does not answer or refuses, or the shard has changed.
        """
        request = self.fetch_in_loop(offset, size, stamp)
        return asyncio.run_coroutine_threadsafe(request, find_loop()).result()

    async def fetch_in_loop(self, offset: int, size: int, stamp: Stamp) -> bytes:
        """As `fetch`, in the loop of fsspec."""
        if not size:
            return b""

        async def ask(files: Files, path: str) -> bytes:
            content, found = await read_range(files, path, offset, offset + size)
            if any(old and new and old != new for old, new in zip(stamp, found, strict=True)):
                raise Unreachable(f"{self} has changed since the run began", remedy="restart it")
            if len(content) != size:
                raise OSError(f"{len(content)} bytes instead of {size}")
            return content

        return await retry_in_loop(self.url, ask, TRIES)


def expect(places: Sequence[Place]) -> None:
    """Begin to fetch these images in another thread of this process."""
    _ahead(os.getpid()).expect(places)


@functools.lru_cache(maxsize=1)
def _ahead(_process: int) -> Ahead:
    """A process that was forked has no threads, and so needs its own."""
    cache = ImageCache(read_limit())

    async def fetch(place: Place) -> bytes:
        shard, stamp, offset, size = place
        content = cache.read(str(shard), stamp, offset, size)
        if content is None:
            content = await shard.fetch_in_loop(offset, size, stamp)
            cache.write(str(shard), stamp, offset, content)
        return content

    return Ahead(find_loop(), fetch)


class RangedFile(io.RawIOBase):
    """A shard as a file that can be read from any position."""

    def __init__(self, shard: RemoteShard, stamp: Stamp) -> None:
        """Begin at byte 0; nothing is read yet."""
        self.shard, self.stamp, self.position = shard, stamp, 0

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte, counted from the start, from here or from the end."""
        self.position = (0, self.position, self.stamp[0])[whence] + offset
        return self.position

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer with one request; fewer bytes at the end.

        Raises:
            Unreachable: As `RemoteShard.fetch`.
        """
        size = max(0, min(len(buffer), self.stamp[0] - self.position))
        buffer[:size] = self.shard.fetch(self.position, size, self.stamp)
        self.position += size
        return size


def is_url(path: str) -> bool:
    """Whether a path is a URL, such as s3://bucket/train-{000..127}.tar."""
    return bool(URL.match(path))


def check_url(url: str, flag: str) -> UrlPath:
    """The URL of tar shards as a path.

    Raises:
        DataError: It names anything else.
    """
    if not is_pattern(url.partition("?")[0]):
        raise DataError(
            f"{flag} {show(url)}: a URL must name tar shards,"
            f" such as s3://bucket/train-{{000..127}}{ENDING}",
            value=url,
        )
    return UrlPath(url)


def find_remote_shards(pattern: str, flag: str) -> list[RemoteShard]:
    """List the shards that a URL with braces and wildcards names; each wildcard's are sorted.

    Raises:
        DataError: A shard is named twice or compressed; fsspec or a part of it is missing; or the
            server cannot list, or has nothing that matches; or the limit of the cache is no size.
    """
    read_limit()  # a wrong one is reported here, and not by a loader process
    urls: list[str] = []
    for url in expand_braces(pattern):
        # A question mark starts a query here.
        urls += _list(url, flag) if glob.has_magic(url.replace("?", "")) else [url]
    check_names(list(map(hide_secrets, urls)), pattern, flag)
    return [RemoteShard(url) for url in urls]


def _list(url: str, flag: str) -> list[str]:
    def ask(files: Files, path: str) -> list[str]:
        return sorted(map(files.unstrip_protocol, call(files, "glob", path)))

    found = retry(url, ask, TRIES_AT_START)
    if not found:
        raise DataError(
            f"{flag} {url}: the server lists no such shard",
            remedy="many web servers list nothing; name the shards with braces,"
            " such as train-{000000..000127}.tar",
        )
    return found
