"""The process that forks the others: it imports once, so that a variant costs no start-up time.

It reads one JSON order per line from stdin, answers "started PID" and later "ended PID STATUS", and
opens no device. When stdin ends, because the parent is done or dead, it ends with all processes it
started.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import sys
from typing import Any

from dino.verify.child import work
from dino.verify.families import TOKEN, end_family

PRELOADED = (  # torch first; TensorBoard alone takes a second
    *(
        "torch",
        "dino.training.trainer",
        "dino.training.alignment",
        "dino.evaluation.knn",
        "tensorboard.summary.writer.record_writer",
    ),
)
POLL = 0.02  # seconds between two checks for ended processes


def serve() -> None:
    """Take orders until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # output of imports must not mix with answers
    for name in PRELOADED:  # the variant that needs a broken module reports it
        with contextlib.suppress(ImportError, OSError, RuntimeError, AttributeError, ValueError):
            importlib.import_module(name)
    orders, running = os.fdopen(os.dup(0), "rb", buffering=0), set[int]()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    answers.write("ready\n")
    waiting = b""
    while True:
        if select.select([orders], [], [], POLL)[0]:
            read = os.read(orders.fileno(), 1 << 16)
            if not read:
                break
            *lines, waiting = (waiting + read).split(b"\n")
            for line in lines:
                order = json.loads(line)
                running.add(pid := _fork(order))
                answers.write(f"started {pid}\n")
        for pid, status in _reap(running):
            answers.write(f"ended {pid} {status}\n")
    end_family(running, os.environ.get(TOKEN, ""))


def _fork(order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (
            os.fdopen(os.dup(log), "w", encoding="utf-8", buffering=1) for _ in range(2)
        )
        code = work(order)
        atexit._run_exitfuncs()
    finally:
        sys.stdout.flush()
        os._exit(code)  # a device's own threads may abort an interpreter that closes


def _reap(running: set[int]) -> list[tuple[int, int]]:
    """Remove ended processes from `running`; return them with exit codes (negative: the signal)."""
    ended = []
    for pid in sorted(running):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            running.discard(pid)
            ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended
