"""Asks the machine: other programs, installed packages, files. Nothing here raises.

What may crash or hang (the bridge above all) runs in a process of its own with a time limit; `PRODUCT` opens a card.
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
MOST_LETTERS = 500  # of a message

# A card itself, not the control files that every hl-smi opens. Names of today's driver (accel) and of older ones (hl).
DEVICE_FILE = re.compile(r"/dev/(accel/accel|hl)\d+")

# Run by `probe`; each leaves an `answer`. Loading of bridges by `import torch` is off in them.
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
# Small whole numbers, so that every format and order of addition gives the same; `argument` is whether to compile.
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
    told = {"answer": answer}
except Exception as error:
    told = {"error": f"{type(error).__name__}: {error}"}
print(chr(10) + sys.argv[3] + json.dumps(told), flush=True)
"""
MARK = "dino.doctor: "


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How another program ended: what it printed and, if it failed, one line that says how."""

    text: str = ""
    error: str | None = None


def run_tool(
    words: Sequence[str], *, seconds: float, environment: Mapping[str, str] | None = None
) -> Outcome:
    """Run a program to its end or the time limit; its errors are text too."""
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
    """Kill what still runs, with its children; one that a driver holds in the kernel is not waited for."""
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
    """Run a piece of Python in a process of its own.

    Returns:
        Its `answer` and None, or None and what it died of, on one line.
    """
    words = [sys.executable, "-c", PROBE, code, json.dumps(argument), MARK]
    alone = {**environment, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    outcome = run_tool(words, seconds=seconds or IMPORT_SECONDS, environment=alone)
    told = _read_told(outcome.text)
    if "error" in told:
        return None, " ".join(told["error"].split())[:MOST_LETTERS]
    if outcome.error is not None:
        return None, outcome.error.removeprefix("exit code 1: ")
    return (told["answer"], None) if "answer" in told else (None, "it ended without an answer")


def _read_told(text: str) -> dict[str, Any]:
    """The last line that `PROBE` printed; empty where there is none. The vendor's libraries print around it."""
    lines = [line for line in text.splitlines() if line.startswith(MARK)]
    try:
        told = json.loads(lines[-1].removeprefix(MARK))
    except (ValueError, IndexError):
        return {}
    return told if isinstance(told, dict) else {}


def list_distributions(pattern: str) -> list[tuple[str, str, str]]:
    """Name, version and folder of each installed Python package whose normalized name matches the whole pattern."""
    found = set()
    for distribution in metadata.distributions():
        told = distribution.metadata
        name, version = (told[key] if key in told else "" for key in ("Name", "Version"))
        normalized = re.sub(r"[-_.]+", "-", name).lower()
        if re.fullmatch(pattern, normalized):
            found.add((normalized, version or "?", str(distribution.locate_file(""))))
    return sorted(found)


def read_text(path: str) -> str:
    """A file's text, line ends as they are.

    Raises:
        OSError: It cannot be read.
        UnicodeDecodeError: It is no text.
    """
    return Path(path).read_bytes().decode()


def resolve(path: str) -> str:
    """A file's real path, as the bridge takes it."""
    return os.path.realpath(path)


def read_kernel_file(name: str, root: Path = Path("/proc")) -> str:
    """Text of a file below /proc; empty where it cannot be read."""
    try:
        return (root / name).read_text(errors="replace")
    except OSError:
        return ""


def is_there(path: str) -> bool:
    """Whether there is a file or folder of this name."""
    return os.path.exists(path)


def may_write(path: str) -> bool:
    """Whether this user may write into a folder, which is made first where it is not there."""
    folder = Path(path)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def list_device_files(root: Path = Path("/dev")) -> list[str]:
    """The cards' device files, in order."""
    found = [path for pattern in ("accel/accel*", "hl*") for path in root.glob(pattern)]
    names = [f"/dev/{path.relative_to(root).as_posix()}" for path in found]
    return sorted(
        (name for name in names if DEVICE_FILE.fullmatch(name)), key=lambda name: (len(name), name)
    )


def list_open_files(root: Path = Path("/proc")) -> dict[int, tuple[str, list[str]]]:
    """{pid: (name, cards' device files)} of the other processes that may be looked at."""
    found = {}
    for pid in _list(root):
        if not pid.isdecimal() or int(pid) == os.getpid():
            continue
        files = [
            path
            for number in _list(root / pid / "fd")
            if (path := _follow(root / pid / "fd" / number))
        ]
        if files:
            found[int(pid)] = (_read_name(root / pid / "comm"), files)
    return found


def _list(folder: Path) -> list[str]:
    """Names in a folder; none where it is gone or closed to us."""
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
