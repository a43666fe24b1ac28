"""What the simulated device saw: host reads, fallbacks, uploads and graphs."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

HERE = Path(__file__)
HIDDEN = (
    str(Path(torch.__file__).parent),
    str(HERE),
    str(HERE.with_name("package")),
    contextlib.__file__,
)
FRAMES = 4  # of the caller, the innermost first


class HostRead(NamedTuple):
    """The host waited for the device: how, and the lines of Python that asked for it."""

    kind: str
    where: str


class Upload(NamedTuple):
    """A copy to the device."""

    bytes: int
    blocking: bool
    where: str


class Uploads(list[Upload]):
    """All copies to the device."""

    @property
    def count(self) -> int:
        """Number of copies."""
        return len(self)

    @property
    def bytes(self) -> int:
        """Their bytes in all."""
        return sum(upload.bytes for upload in self)

    @property
    def blocking(self) -> int:
        """How many of them the host waited for."""
        return sum(upload.blocking for upload in self)

    @property
    def non_blocking(self) -> int:
        """How many of them it did not wait for."""
        return self.count - self.blocking


class Join(NamedTuple):
    """The host waited for the bridge's own threads, not for the card: why, and the lines of Python
    that asked for it.

    What waits, by the bridge's sources: in eager mode `torch.manual_seed` and copies from pinned
    memory, if anything was queued since the last wait; in lazy mode collectives, a graph with a
    number that is new, and copies into a tensor in use. Host reads, blocking uploads and fallbacks
    wait for the card as well and are counted by themselves.
    """

    kind: str
    where: str


class Launch(NamedTuple):
    """Work that the host gave to the card: an operator, or a compiled graph as "graph"; and the
    phase it was in."""

    operator: str
    phase: str


class Launches(list[Launch]):
    """All launches outside compiled graphs; views, allocations, uploads and collectives are
    none."""

    @property
    def operators(self) -> Counter[str]:
        """Operators by phase."""
        return Counter(launch.phase for launch in self if launch.operator != "graph")

    @property
    def graphs(self) -> Counter[str]:
        """Compiled graphs by phase."""
        return Counter(launch.phase for launch in self if launch.operator == "graph")

    def within(self, phase: str) -> Counter[str]:
        """Launches of one phase by operator."""
        return Counter(launch.operator for launch in self if launch.phase == phase)


class Graph(NamedTuple):
    """A compiled graph: its number in this process and what closed it."""

    number: int
    closed_by: str

    @property
    def lines(self) -> list[str]:
        """One operator a line."""
        return _device().graph_lines(self.number)

    @property
    def difference(self) -> str:
        """First line in which it differs from the nearest graph that is older."""
        lines = self.lines
        others = [_device().graph_lines(number) for number in range(self.number)]
        if not others:
            return f"the first graph, {len(lines)} operators"
        return describe_difference(max(others, key=functools.partial(_likeness, lines)), lines)


class Seen:
    """What happened within `watch`."""

    def __init__(self) -> None:
        """Nothing so far."""
        self.host_reads: list[HostRead] = []
        self.queued_reads: list[HostRead] = []  # into pinned memory, without waiting
        self.synchronizations: list[HostRead] = []
        self.uploads = Uploads()
        self.joins: list[Join] = []
        self.launches = Launches()
        self.views = 0
        self.allocations = 0
        self.collectives = 0
        self.graphs: list[Graph] = []
        self.new_graphs: list[Graph] = []
        self.ops: list[str] = []
        self.new_ops: list[str] = []
        self.fallbacks: Counter[str] = Counter()
        self.float64: Counter[str] = Counter()
        self.scalar_uploads: list[str] = []

    def calls(self, name: str) -> list[str]:
        """The recorded lines of one operator, such as "addmm"."""
        return [
            line
            for line in self.ops
            if line.partition("(")[0].removeprefix("aten::").split(".")[0] == name
        ]

    def _observe(self, kind: str, size: int, flags: str) -> None:
        """Called where the host touches the device, in the thread that does."""
        where = find_caller()
        if kind == "upload":
            self.uploads.append(Upload(size, flags == "blocking", where))
        elif kind == "join":
            self.joins.append(Join(flags, where))
        elif kind == "collective":
            self.collectives += 1
        elif kind == "synchronize":
            self.synchronizations.append(HostRead(kind, where))
        elif kind == "queued_copy":
            self.queued_reads.append(HostRead(kind, where))
        else:
            read = HostRead(_refine(kind), where)
            if read.kind != "print" or self.host_reads[-1:] != [read]:  # one print reads many times
                self.host_reads.append(read)

    def _add(self, kind: str, text: str, phase: str) -> None:
        """Take over one event of the device."""
        if kind in ("graph", "new_graph"):
            number, _, closed_by = text.partition(" ")
            graph = Graph(int(number), closed_by)
            self.graphs.append(graph)
            if kind == "new_graph":
                self.new_graphs.append(graph)
        elif kind in ("fallback", "float64"):
            (self.fallbacks if kind == "fallback" else self.float64)[text] += 1
        elif kind == "launch":
            self.launches.append(Launch(text, phase))
        elif kind == "view":
            self.views += 1
        elif kind == "allocation":
            self.allocations += 1
        else:
            {"op": self.ops, "new_op": self.new_ops, "scalar_upload": self.scalar_uploads}[
                kind
            ].append(text)


@contextlib.contextmanager
def watch() -> Iterator[Seen]:
    """Record until the end of the block; the lists of operators and graphs are filled there."""
    simulated = importlib.import_module("habana_frameworks.torch._simulated")
    seen = Seen()
    start = simulated.device.begin_watch()
    simulated.observers.append(seen._observe)
    try:
        yield seen
    finally:
        simulated.observers.remove(seen._observe)
        for event in simulated.device.events_since(start):
            seen._add(*event)
        simulated.device.end_watch()


def enter_phase(name: str) -> None:
    """What the card is given from now on, by any thread, belongs to this phase of the step."""
    _device().set_phase(name)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """What the card is given within the block, by any thread, belongs to this phase of the step."""
    device = _device()
    outer = device.set_phase(name)
    try:
        yield
    finally:
        device.set_phase(outer)


def describe_difference(old: list[str], new: list[str]) -> str:
    """The first operator that changed, with its old and its new form."""
    for number, (before, after) in enumerate(zip(old, new, strict=False)):
        if before != after:
            return f"operator {number}: {_changed_part(before, after)}"
    if len(old) == len(new):
        return "the same operators"
    longer, word = (new, "added") if len(new) > len(old) else (old, "missing")
    return f"operator {min(len(old), len(new))} {word}: {longer[min(len(old), len(new))]}"


def find_caller() -> str:
    """The innermost lines of Python outside torch and this simulator, as "file:line function <
    ..."."""
    frame, lines = sys._getframe(1), []
    while frame is not None and len(lines) < FRAMES:
        path = frame.f_code.co_filename
        if not path.startswith(HIDDEN) and not path.startswith("<frozen"):
            lines.append(f"{os.path.basename(path)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(lines) or "no Python caller (autograd thread)"


def _refine(kind: str) -> str:
    """A read from within torch's printing is a print."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.endswith("_tensor_str.py"):
            return "print"
        frame = frame.f_back
    return kind


def _device() -> Any:
    return sys.modules["_hpu_simulator"]


def _likeness(lines: list[str], other: list[str]) -> tuple[float, ...]:
    """Larger for more alike graphs: in the operators' order, their names, their lines but for
    numbers, their lines."""
    names, others = ([line.partition("(")[0] for line in graph] for graph in (lines, other))
    in_place = sum(a == b for a, b in zip(names, others, strict=False)) / max(
        len(names), len(others)
    )
    forms = ([re.sub(r"[\d.]+", "", line) for line in graph] for graph in (lines, other))
    pairs = (names, others), tuple(forms), (lines, other)
    return in_place, *(
        difflib.SequenceMatcher(None, a, b, autojunk=False).quick_ratio() for a, b in pairs
    )


def _changed_part(before: str, after: str) -> str:
    """Operator and the arguments that differ, or both lines where the operators do."""
    (name, _, old), (other, _, new) = before.partition("("), after.partition("(")
    if name != other:
        return f"{before} became {after}"
    pairs = zip(_split_arguments(old), _split_arguments(new), strict=False)
    changes = [f"{a} became {b}" for a, b in pairs if a != b]
    return f"{name}: {'; '.join(changes) or f'{old} became {new}'}"


def _split_arguments(text: str) -> list[str]:
    """The arguments of a recorded line; sizes hold commas too."""
    return re.split(r", (?=\w+=)", text.rpartition(") ->")[0])
