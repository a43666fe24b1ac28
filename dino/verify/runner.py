"""Runs variants one by one in child processes, which end with their children at a time limit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import dino
from dino.verify.base import Result, Setting, Variant
from dino.verify.families import TOKEN, end_family

POLL = 0.05  # seconds between two polls
START_LIMIT = 300.0  # seconds for the imports; from a network disk they take a while
END_LIMIT = 5.0  # seconds to wait for a killed process; a driver may hold it in the kernel
LOG_LINES = 30  # lines of a process's output in the report
COMMAND = "from dino.verify.server import serve; serve()"


@dataclass
class _Running:
    """One process of a variant, and the content of its journal so far."""

    pid: int
    journal: Path
    log: Path
    read: int = 0
    last: str = ""
    said: float = field(default_factory=time.monotonic)
    within: float | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    code: int | None = None

    @property
    def is_silent(self) -> bool:
        """Whether it has written nothing within the time that it announced."""
        return self.within is not None and time.monotonic() > self.said + self.within

    def look(self) -> bool:
        """Read new lines of the journal; return whether there were any."""
        if not self.journal.exists():
            return False
        with self.journal.open("rb") as file:
            file.seek(self.read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.read += len(whole)
        for line in whole.splitlines():
            entry = json.loads(line)
            self.last, self.within = entry.get("say", self.last), entry.get("within")
            self.answer |= {
                name: value for name, value in entry.items() if name not in {"say", "within"}
            }
        if whole:
            self.said = time.monotonic()
        return bool(whole)


class Runner:
    """Owns the forking server inside a `with` block; all remaining processes end with the block."""

    def __init__(self, setting: Setting, show: Callable[[str], None] = lambda text: None) -> None:
        """Start nothing yet; `show` gets the current activity of a variant."""
        self.setting, self.show, self.count = setting, show, 0
        self.token = secrets.token_hex(16)
        self.is_warm = False  # whether the server has finished its imports

    def __enter__(self) -> Runner:
        """Start the server; it imports while the first variant is chosen."""
        root = str(Path(dino.__file__).parents[1])
        paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {
            **os.environ,
            "PYTHONPATH": paths,
            "TMPDIR": str(self.setting.folder),
            TOKEN: self.token,
        }
        # Only the process that opens the device loads a bridge.
        environment["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
        with (self.setting.folder / "server.txt").open("wb") as said:
            self.server = subprocess.Popen(
                [sys.executable, "-c", COMMAND],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches only this process
            )
        self.ended: dict[int, int] = {}
        self.started: list[int] = []
        self.waiting, self.ready = b"", False
        return self

    def __exit__(self, *_: object) -> None:
        """End the server and all processes it started."""
        assert self.server.stdin is not None
        with contextlib.suppress(OSError):
            self.server.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.wait(END_LIMIT)
        end_family([self.server.pid], self.token)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.server.wait(END_LIMIT)
        if self.server.stdout is not None:
            self.server.stdout.close()

    def run(self, step: str, variant: Variant, limit: float) -> Result:
        """Run one variant until it ends or reaches its limit.

        Args:
            step: Module of `dino.verify.steps`.
            variant: Variant to run.
            limit: Time limit in seconds, without the start of the server.
        """
        if not self._await(lambda: self.ready, START_LIMIT):
            return Result(variant=variant, kind="error", error=self._explain_server())
        before, began = len(self.started), time.monotonic()
        port = str(_find_port())
        for rank in range(variant.processes):
            self._order(step, variant, rank, port, self._token(self.count - rank), limit)
        if not self._await(lambda: len(self.started) - before == variant.processes, END_LIMIT):
            return Result(variant=variant, kind="error", error=self._explain_server())
        places = range(self.count - variant.processes, self.count)
        token = self._token(places[0])
        running = [
            _Running(pid, self._file(place, "journal"), self._file(place, "log"))
            for pid, place in zip(self.started[before:], places, strict=True)
        ]
        try:
            stopped = self._watch(running, began + limit)
        finally:
            end_family([each.pid for each in running], token)
        self._await(lambda: all(each.pid in self.ended for each in running), END_LIMIT)
        for each in running:
            each.look()
            each.code = self.ended.get(each.pid)
        return _conclude(variant, running, stopped, time.monotonic() - began)

    def _watch(self, running: list[_Running], end: float) -> str | None:
        """Wait until all have ended or one has failed; return "time" or "hang" if stopped early."""
        while True:
            self._listen(POLL)
            for each in running:
                if each.look() and each is running[0]:
                    self.show(each.last)
            codes = [self.ended.get(each.pid) for each in running]
            if (
                all(code is not None for code in codes)
                or any(codes)
                or self.server.poll() is not None
            ):
                return None
            if time.monotonic() > end:
                return "time"
            if all(each.is_silent for each in running):
                return "hang"

    def _order(
        self, step: str, variant: Variant, rank: int, port: str, token: str, limit: float
    ) -> None:
        setting = asdict(self.setting) | {"folder": str(self.setting.folder)}
        place: dict[str, int | str] = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": variant.processes,
        }
        place |= {
            "LOCAL_WORLD_SIZE": variant.processes,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        together = (
            {name: str(value) for name, value in place.items()} if variant.processes > 1 else {}
        )
        order = {
            "step": step,
            "variant": _as_plain(variant),
            "setting": setting,
            "limit": limit,
            "journal": str(self._file(self.count, "journal")),
            "log": str(self._file(self.count, "log")),
            "environment": {**variant.environment, **together, TOKEN: token},
        }
        self.count += 1
        assert self.server.stdin is not None
        with contextlib.suppress(OSError):
            self.server.stdin.write(json.dumps(order).encode() + b"\n")
            self.server.stdin.flush()

    def _token(self, place: int) -> str:
        """Return the token of the variant whose first process has this number."""
        return f"{self.token}-{place}-"

    def _file(self, place: int, kind: str) -> Path:
        return self.setting.folder / f"{place}.{kind}"

    def _await(self, done: Callable[[], bool], seconds: float) -> bool:
        end = time.monotonic() + seconds
        while (
            not done()
            and time.monotonic() < end
            and (self.server.poll() is None or self._listen(0))
        ):
            self._listen(POLL)
        return done()

    def _listen(self, seconds: float) -> bool:
        """Read the server's answers; return whether there were any."""
        assert self.server.stdout is not None
        if not select.select([self.server.stdout], [], [], seconds)[0]:
            return False
        read = os.read(self.server.stdout.fileno(), 1 << 16)
        *lines, self.waiting = (self.waiting + read).split(b"\n")
        for line in lines:
            word, *numbers = line.decode().split()
            if word == "ready":
                self.ready = True
            elif word == "started":
                self.started.append(int(numbers[0]))
            else:
                self.ended[int(numbers[0])] = int(numbers[1])
        return bool(read)

    def _explain_server(self) -> str:
        text = (
            (self.setting.folder / "server.txt")
            .read_text(encoding="utf-8", errors="replace")
            .strip()
        )
        last = text.splitlines()[-1] if text else "no output"
        return f"the process that starts the others does not answer: {last}"


def _conclude(
    variant: Variant, running: list[_Running], stopped: str | None, seconds: float
) -> Result:
    """Build the result; of several processes, the first that failed by itself decides."""
    failed = [each for each in running if "error" in each.answer or (each.code or 0) < 0] or running
    chosen = next((each for each in failed if "error" in each.answer), failed[0])
    more: dict[str, Any] = {"variant": variant, "seconds": seconds, "last": chosen.last}
    if stopped is None and all("figures" in each.answer for each in running):
        return Result(figures=running[0].answer["figures"], **more)
    more["log"] = read_end(chosen.log)
    if stopped is not None:
        last = f"; its last activity was: {chosen.last}" if chosen.last else ""
        reason = f"did not finish within {seconds:.0f} s"
        if stopped == "hang":
            reason = f"no progress for {chosen.within:g} s"
        return Result(kind=stopped, error=f"{reason}{last}", **more)
    if "error" in chosen.answer:
        return Result(kind=chosen.answer["kind"], error=chosen.answer["error"], **more)
    if (chosen.code or 0) < 0:
        name = signal.Signals(-(chosen.code or 0)).name
        last = f" during: {chosen.last}" if chosen.last else ""
        return Result(kind="killed", error=f"the process was killed by {name}{last}", **more)
    return Result(kind="error", error="the process ended without an answer", **more)


def read_end(path: Path) -> str:
    """Return the last lines of a process's output; empty if there is none."""
    with contextlib.suppress(OSError):
        return "\n".join(
            path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
        )
    return ""


def _as_plain(variant: Variant) -> Mapping[str, Any]:
    """Return a variant as plain JSON values, mappings as dictionaries."""
    return {
        name: dict(value) if isinstance(value, Mapping) else value
        for name, value in vars(variant).items()
    }


def _find_port() -> int:
    """Return a free port below those that the system assigns to outgoing connections."""
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port")
