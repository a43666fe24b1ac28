"""A web server on the loopback address that serves ranges of files, with faults if asked for."""

import contextlib
import functools
import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@functools.lru_cache(maxsize=64)
def read(path: Path, _changed: int) -> tuple[bytes, str]:
    """The content of a file and its ETag."""
    content = path.read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()}"'


class RangeServer(http.server.ThreadingHTTPServer):
    """Serves the files of a folder.

    Attributes:
        faults: What happens to the next reads, one each: an HTTP code, "stall", "cut", "shift"
            (another range) or "whole" (no ranges).
        latency: Seconds before each answer.
        asked: (method, name, Range) of every request.
        lists: Whether folders are listed.
        meeting: Reads wait here for one another, once.
    """

    daemon_threads = True
    request_queue_size = 128  # a full queue costs a second

    def __init__(self, folder: Path, latency: float = 0.0, *, lists: bool = False) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.latency, self.lists = folder, latency, lists
        self.faults: list[int | str] = []
        self.asked: list[tuple[str, str, str]] = []
        self.release = threading.Event()
        self.meeting: threading.Barrier | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """Clients that give up are expected."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and content in one packet

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.answer(with_content=True)

    def answer(self, *, with_content: bool) -> None:
        wanted = self.headers.get("Range", "")
        self.server.asked.append((self.command, self.path, wanted))
        time.sleep(self.server.latency)
        if with_content and self.server.meeting:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.server.meeting.wait(60)
                self.server.meeting.abort()  # nobody else waits
        fault = self.server.faults.pop(0) if with_content and self.server.faults else ""
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if fault == "stall":
            self.server.release.wait(60)
        if isinstance(fault, int) or not path.exists() or path.is_dir() > self.server.lists:
            return self.send_error(fault if isinstance(fault, int) else 404)
        if path.is_dir():
            page = "".join(f'<a href="{each.name}">x</a>' for each in sorted(path.iterdir()))
            return self.send(200, page.encode(), {"Content-Type": "text/html"}, with_content)
        content, tag = read(path, path.stat().st_mtime_ns)
        facts = {"ETag": tag, "Accept-Ranges": "bytes"}
        if not wanted or fault == "whole":
            return self.send(200, content, facts, with_content)
        start, stop = map(int, wanted.removeprefix("bytes=").split("-"))
        start, stop = (start + 512, stop + 512) if fault == "shift" else (start, stop)
        part = content[start : stop + 1]
        facts["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self.send(206, part, facts, with_content, cut=fault == "cut")

    def send(
        self,
        code: int,
        content: bytes,
        headers: dict[str, str],
        with_content: bool,
        *,
        cut: bool = False,
    ) -> None:
        self.send_response(code)
        for name, text in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, text)
        self.end_headers()
        if with_content:
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = cut

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serve(folder: Path, latency: float = 0.0, *, lists: bool = False) -> Iterator[RangeServer]:
    """Run a server in a thread."""
    with RangeServer(folder, latency, lists=lists) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield server
        finally:
            server.release.set()
            server.shutdown()
