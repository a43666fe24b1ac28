"""Queries the machine: other programs, installed packages, files. Nothing here raises.

Code that may crash or hang, above all the bridge, runs in a child process with a time limit.
`PRODUCT` opens a card.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

TOOL_SECONDS = 10.0  # hl-smi and nvidia-smi answer within one
IMPORT_SECONDS = 120.0  # the first import of torch from a network disk takes a while
PRODUCT_SECONDS = 180.0  # that import, opening the card, and compiling two small graphs
MOST_LETTERS = 500  # longest message

# A card itself, not the control files that every hl-smi opens. The current driver names it accel,
# older drivers hl.
DEVICE_FILE = re.compile(r"/dev/(accel/accel|hl)\d+")

# Code that `probe` runs; each sets `answer`. In it `import torch` does not load bridges by itself.
CHOOSE = "from dino.devices import choose_device; answer = choose_device(None)"
TORCH = """
import torch
answer = {
    "version": torch.__version__,
    "sum": torch.ones(2).sum().item(),
    "cuda": torch.version.cuda,
    "available": torch.cuda.is_available(),
    "count": torch.cuda.device_count(),
    "unknown": [name for name in argument if not hasattr(torch.ops.aten, name)],
}
"""
BRIDGE = "import habana_frameworks.torch.core as core; answer = core.__name__"
# Small whole numbers: every format and order of addition gives the same result. `argument` says
# whether to compile.
PRODUCT = """
import torch
import habana_frameworks.torch.core
def multiply(x):
    product = x @ x
    return product, product.sum()
host = torch.arange(128 * 128).reshape(128, 128).remainder(5).float()
card = host.to("hpu")
run = torch.compile(multiply, backend="hpu_backend", dynamic=False) if argument else multiply
product, total = run(card)
expected = multiply(host)
answer = {
    "garbled": int((card.cpu() != host).sum()),
    "wrong": int((product.cpu() != expected[0]).sum()) + int(total.cpu() != expected[1]),
}
"""
PROBE = """
import json, sys
argument = json.loads(sys.argv[2])
try:
    exec(sys.argv[1])
    reply = {"answer": answer}
except Exception as error:
    reply = {"error": f"{type(error).__name__}: {error}"}
print(chr(10) + sys.argv[3] + json.dumps(reply), flush=True)
"""
MARK = "dino.doctor: "


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How another program ended: its output and, if it failed, one line with the reason."""

    text: str = ""
    error: str | None = None


def run_tool(
    words: Sequence[str], *, seconds: float, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Run a program until it ends or reaches the time limit; errors are returned as text."""
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=pipe,
            env=environment,
            start_new_session=True,
        )
    except FileNotFoundError:
        return Outcome(error="not found")
    except OSError as error:
        return Outcome(error=f"cannot be started ({error})")
    try:
        streams = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Outcome(error=f"no answer in {seconds:g} s")
    finally:
        _end(process)
    text, complaint = (stream.decode(errors="replace") for stream in streams)
    if process.returncode == 0:
        return Outcome(text=text)
    last = next(
        (line.strip() for line in reversed((complaint or text).splitlines()) if line.strip()), ""
    )
    return Outcome(
        text=text,
        error=f"{_describe_end(process.returncode)}{': ' if last else ''}{last[:MOST_LETTERS]}",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill a running process with its children; do not wait for one stuck in the kernel."""
    if process.poll() is None:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


def _describe_end(code: int) -> str:
    if code > 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


def probe(
    code: str, environment: Mapping[str, str], argument: Any = None, *, seconds: float | None = None
) -> tuple[Any, str | None]:
    """Run a piece of Python in a child process.

    Returns:
        Its `answer` and None, or None and why it failed, on one line.
    """
    words = [sys.executable, "-c", PROBE, code, json.dumps(argument), MARK]
    alone = {**environment, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    outcome = run_tool(words, seconds=seconds or IMPORT_SECONDS, environment=alone)
    reply = _read_reply(outcome.text)
    if "error" in reply:
        return None, " ".join(reply["error"].split())[:MOST_LETTERS]
    if outcome.error is not None:
        return None, outcome.error.removeprefix("exit code 1: ")
    return (reply["answer"], None) if "answer" in reply else (None, "it ended without an answer")


def _read_reply(text: str) -> dict[str, Any]:
    """Parse the last line that `PROBE` printed among other output; empty if there is none."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    try:
        reply = json.loads(lines[-1].removeprefix(MARK))
    except (ValueError, IndexError):
        return {}
    return reply if isinstance(reply, dict) else {}


def list_distributions(pattern: str) -> list[tuple[str, str, str]]:
    """List installed Python packages by name, version and folder.

    `pattern` must match the whole normalized name.
    """
    packages = set()
    for distribution in metadata.distributions():
        fields = distribution.metadata
        name, version = (fields[key] if key in fields else "" for key in ("Name", "Version"))
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if re.fullmatch(pattern, normalized):
            packages.add((normalized, version or "?", str(distribution.locate_file(""))))
    return sorted(packages)


def read_text(path: str) -> str:
    """Return a file's text with its line ends unchanged.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: The file is not UTF-8 text.
    """
    return Path(path).read_bytes().decode()


def resolve(path: str) -> str:
    """Return a file's real path, which is the one the bridge checks."""
    return os.path.realpath(path)


def read_kernel_file(name: str, root: Path = Path("/proc")) -> str:
    """Return the text of a file below /proc; empty if it cannot be read."""
    try:
        return (root / name).read_text(errors="replace")
    except OSError:
        return ""


def is_there(path: str) -> bool:
    """Whether a file or folder with this name exists."""
    return os.path.exists(path)


def may_write(path: str) -> bool:
    """Whether this user can write into a folder, or can create it if it does not exist."""
    folder = Path(path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def list_device_files(root: Path = Path("/dev")) -> list[str]:
    """Return the cards' device files, in order."""
    paths = [path for pattern in ("accel/accel*", "hl*") for path in root.glob(pattern)]
    names = [f"/dev/{path.relative_to(root).as_posix()}" for path in paths]
    return sorted(
        (name for name in names if DEVICE_FILE.fullmatch(name)), key=lambda name: (len(name), name)
    )


def list_open_files(root: Path = Path("/proc")) -> dict[int, tuple[str, list[str]]]:
    """Return {pid: (name, open device files of cards)} for the other processes that are visible."""
    users = {}
    for pid in _list(root):
        if not pid.isdecimal() or int(pid) == os.getpid():
            continue
        files = [
            path
            for number in _list(root / pid / "fd")
            if (path := _follow(root / pid / "fd" / number))
        ]
        if files:
            users[int(pid)] = (_read_name(root / pid / "comm"), files)
    return users


def _list(folder: Path) -> list[str]:
    """Return the names in a folder; none if it is gone or may not be read."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _follow(link: Path) -> str | None:
    with contextlib.suppress(OSError):
        path = os.readlink(link)
        return path if DEVICE_FILE.fullmatch(path) else None
    return None


def _read_name(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip() or "unnamed"
    except OSError:
        return "unknown"
