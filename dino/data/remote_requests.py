"""Requests to the file systems of fsspec: with patience, several tries and a clear end.

A request is tried again, with growing pauses, unless the answer would not change, and it ends with
one line.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import http
import logging
import os
import random
import re
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeAlias, TypeVar

from dino.data.index import Stamp
from dino.errors import DataError

logger = logging.getLogger(__name__)

SECRETS = re.compile(r"(?<=://)[^/@]*@|\?.*")  # of a URL: a user's name, the signature of a query
TRIES = 8  # of one read; with the pauses below about a minute, and more if a server stalls
TRIES_AT_START = 4  # a few seconds, because the name of the server may be wrong
PAUSE, LONGEST_PAUSE = 0.5, 30.0  # s; doubled after each try
PATIENCE, SLOWEST = 30.0, 1e6  # s that one try may take, and bytes/s that add to it
# What tells that a file has changed, as fsspec's file systems and HTTP servers call it.
TAGS = ("etag", "generation")
TIMES = ("last-modified", "lastmodified", "mtime", "updated", "modified", "created")
LATER = (408, 425, 429)  # HTTP codes from 400 to 499 that may change
FINAL = (PermissionError, IsADirectoryError, ImportError, NotImplementedError, ValueError)
ANONYMOUS = ("NoCredentialsError", "PartialCredentialsError")  # of botocore, which is optional
# What a scheme needs: a package, and our extra that names it.
HTTP, S3, GS = ("'fsspec[http]'", "remote"), ("s3fs", "s3"), ("gcsfs", "gs")
PACKAGES = {"http": HTTP, "https": HTTP, "s3": S3, "s3a": S3, "gs": GS, "gcs": GS}

Files: TypeAlias = Any  # a file system of fsspec, which has no types
Result = TypeVar("Result")


class Unreachable(DataError):
    """An image behind a URL that cannot be read now; it is not bad, so nothing replaces it."""


def hide_secrets(url: str) -> str:
    """A URL as it may be printed: without a user's name and password, and without its query."""
    return SECRETS.sub("", url)


def retry(url: str, ask: Callable[[Files, str], Result], tries: int) -> Result:
    """Call `ask(file system, path)` until it answers.

    Raises:
        Unreachable: The answer will not change, or did not come in this many tries.
        DataError: fsspec or a part of it is missing.
    """
    files, failures = _connect(url), _Failures(url, tries)
    while True:
        try:
            return ask(files, files._strip_protocol(url))
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own
            pause = failures.judge(error)
        time.sleep(pause)


async def retry_in_loop(
    url: str, ask: Callable[[Files, str], Awaitable[Result]], tries: int
) -> Result:
    """As `retry`, in the loop of fsspec."""
    files, failures = _connect(url), _Failures(url, tries)
    while True:
        try:
            return await ask(files, files._strip_protocol(url))
        except DataError:
            raise
        except Exception as error:  # noqa: BLE001 - each file system has errors of its own
            pause = failures.judge(error)
        await asyncio.sleep(pause)


class _Failures:
    """Counts what went wrong with one request."""

    def __init__(self, url: str, tries: int) -> None:
        self.url, self.tries = hide_secrets(url), tries
        self.number, self.start = 0, time.monotonic()

    def judge(self, error: Exception) -> float:
        """The seconds until the next try, unless there is none: then `Unreachable`."""
        self.number += 1
        reason, is_final = _explain(error)
        if is_final or self.number == self.tries:
            seconds = time.monotonic() - self.start
            spent = f" ({self.number} tries in {seconds:.0f} s)" * (self.number > 1)
            raise Unreachable(f"{self.url} cannot be read: {reason}{spent}") from error
        if self.number == self.tries // 2:
            logger.warning("%s: %s; trying again", self.url, reason)
        pause: float = min(PAUSE * 2 ** (self.number - 1), LONGEST_PAUSE)
        return pause * random.SystemRandom().uniform(0.5, 1)  # leaves the run's draws alone


def find_loop() -> asyncio.AbstractEventLoop:
    """The loop of fsspec in this process, which runs in a daemon thread of its own."""
    from fsspec.asyn import get_loop

    loop: asyncio.AbstractEventLoop = get_loop()
    return loop


def _connect(url: str) -> Files:
    """The file system of a URL, one for all threads of this process."""
    return _open_files(os.getpid(), "/".join(url.split("/")[:3]))


@functools.lru_cache(maxsize=64)
def _open_files(_process: int, root: str) -> Files:
    scheme = root.partition("://")[0].lower()
    needs = PACKAGES.get(scheme)
    remedy = f"pip install {needs[0]} (the extra {needs[1]})" if needs else None
    try:
        import fsspec

        # aiohttp reads the variables of proxies only if it is told to, and then at each request.
        proxies = scheme in ("http", "https") and bool(urllib.request.getproxies())
        options = {"client_kwargs": {"trust_env": True}} if proxies else {}
        return fsspec.core.url_to_fs(f"{root}/x", **options)[0]
    except (ImportError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DataError(
            f"{hide_secrets(root)} cannot be opened: {reason}", remedy=remedy
        ) from error


def call(files: Files, name: str, path: str) -> Any:
    """Call a method of a file system, for at most `PATIENCE` if it can be interrupted."""
    if not getattr(files, "async_impl", False):
        return getattr(files, name)(path)
    from fsspec.asyn import sync

    return sync(files.loop, getattr(files, f"_{name}"), path, timeout=PATIENCE)


async def read_range(files: Files, path: str, start: int, stop: int) -> tuple[bytes, Stamp]:
    """The bytes from `start` up to `stop`, and what the answer says of the file's stamp."""
    protocol = files.protocol if isinstance(files.protocol, str) else files.protocol[0]
    read = {"http": _get_http, "s3": _get_s3}.get(protocol, _get_any)
    if not getattr(files, "async_impl", False):
        read = _get_in_thread
    patience = PATIENCE + (stop - start) / SLOWEST
    return await asyncio.wait_for(read(files, path, start, stop), patience)


async def _get_in_thread(files: Files, path: str, start: int, stop: int) -> tuple[bytes, Stamp]:
    """For a file system that blocks; the thread is a daemon, so that no exit waits for a server."""
    future: Future[tuple[bytes, Stamp]] = Future()

    def read() -> None:
        try:
            content = files.cat_file(path, start=start, end=stop)
            future.set_result((content, stamp_of(files.info(path))))
        except BaseException as error:  # noqa: BLE001 - raised again below
            future.set_exception(error)

    threading.Thread(target=read, daemon=True).start()
    return await asyncio.wrap_future(future)


async def _get_http(files: Files, url: str, start: int, stop: int) -> tuple[bytes, Stamp]:
    """As fsspec's `cat_file`, which checks neither the range nor the identity of the answer."""
    session, options = await files.set_session(), dict(files.kwargs)
    wanted = {"Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}
    options["headers"] = {**options.get("headers", {}), **wanted}
    async with session.get(files.encode_url(url), **options) as response:
        response.raise_for_status()
        answered, _, size = response.headers.get("Content-Range", "").partition("/")
        if not answered:
            raise NotImplementedError("the server sends whole files, not ranges of them")
        if answered != f"bytes {start}-{stop - 1}":
            raise OSError(f"the server sent {answered} instead of bytes {start}-{stop - 1}")
        facts = {**response.headers, "size": int(size) if size.isdigit() else 0}
        return await response.read(), stamp_of(facts)


async def _get_s3(files: Files, path: str, start: int, stop: int) -> tuple[bytes, Stamp]:
    """As s3fs's `cat_file`, which does not tell the identity of the answer."""
    bucket, key, _ = files.split_path(path)
    answer = await files._call_s3(
        "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}"
    )
    size = int(answer["ContentRange"].rpartition("/")[2])
    async with answer["Body"] as body:
        return await body.read(), stamp_of({**answer, "size": size})


async def _get_any(files: Files, path: str, start: int, stop: int) -> tuple[bytes, Stamp]:
    content = await files._cat_file(path, start=start, end=stop)
    return content, stamp_of(await files._info(path))


def stamp_of(facts: Mapping[str, Any]) -> Stamp:
    """(size, ETag, time of change) as numbers; 0 is unknown, and the time is if an ETag is known.

    The two are digests below any time in ns since 1970, so an index takes them for long past.
    """
    known = {name.lower(): str(value) for name, value in facts.items() if value}
    tag = next((known[name] for name in TAGS if name in known), "")
    changed = "" if tag else next((known[name] for name in TIMES if name in known), "")
    return int(known.get("size", 0)), _digest(tag.removeprefix("W/")), _digest(changed)


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") if text else 0


def _explain(error: BaseException) -> tuple[str, bool]:
    """What an error says, and whether it would say so again."""
    while isinstance(error, FileNotFoundError) and error.__cause__ is not None:
        error = error.__cause__  # fsspec's HTTP files call every error that
    status = _status_of(error)
    if status is not None:
        words = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
        return f"HTTP {status} {words}".strip(), 400 <= status < 500 and status not in LATER
    if isinstance(error, FileNotFoundError):
        return "it does not exist", True
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return str(error) or "the server does not answer in time", False
    reason = hide_secrets(" ".join(str(error).split())) or type(error).__name__
    return reason, isinstance(error, FINAL) or type(error).__name__ in ANONYMOUS


def _status_of(error: BaseException) -> int | None:
    """The HTTP code in an error of aiohttp, gcsfs or botocore, which s3fs translates."""
    status = getattr(error, "status", None) or getattr(error, "code", None)
    for each in (error, error.__cause__):
        answer = getattr(each, "response", None)
        if isinstance(answer, dict):
            status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status if isinstance(status, int) else None
