"""Who the processes of a run are, and what their host's kernel says about them."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

GONE = ("Z", "X", "x")  # states of /proc: ended, whether or not its parent has noticed
STOPPED = ("T", "t")  # by SIGSTOP, or by a debugger
NAMESPACE = "/proc/self/ns/pid"  # a link that names where numbers of processes are valid


@dataclass(frozen=True, kw_only=True)
class Member:
    """A process of a run.

    Attributes:
        host: Name of its host.
        pid: Number of the process.
        start: Ticks from the host's start to its own, since numbers are used again.
        kernel: The running kernel and the namespace in which `pid` is valid; "-" if unknown.
    """

    host: str
    pid: int
    start: str
    kernel: str

    @classmethod
    def here(cls) -> Member:
        """This process."""
        _, start = read_state(os.getpid()) or ("", "-")
        return cls(
            host="".join(socket.gethostname().split()) or "-",
            pid=os.getpid(),
            start=start,
            kernel=_read_kernel(),
        )

    @classmethod
    def parse(cls, text: str) -> Member:
        """Read the form that `str` writes."""
        host, pid, start, kernel = text.split()
        return cls(host=host, pid=int(pid), start=start, kernel=kernel)

    def __str__(self) -> str:
        """Return the fields, separated by spaces."""
        return f"{self.host} {self.pid} {self.start} {self.kernel}"

    @property
    def place(self) -> str:
        """The process, for people."""
        return f"process {self.pid} on {self.host}"

    def shares_kernel(self, other: Member) -> bool:
        """Whether one of the two can ask its kernel about the other."""
        return self.kernel == other.kernel != "-"

    def is_gone(self) -> bool:
        """Whether the process has ended; only for members that share this process's kernel."""
        found = read_state(self.pid)
        return found is None or found[0] in GONE or found[1] != self.start

    def is_running(self) -> bool:
        """Whether it has neither ended nor been stopped; for those that share this kernel."""
        found = read_state(self.pid)
        return found is not None and found[0] not in GONE + STOPPED and found[1] == self.start


def read_state(pid: int) -> tuple[str, str] | None:
    """Return the state and the start of a process, or None if /proc has none of this number."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    values = fields.rpartition(")")[2].split()  # the name before it may hold anything
    return values[0], values[19]


def _read_kernel() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.readlink(NAMESPACE)}"
    except OSError:
        return "-"


def read_namespace() -> str:
    """Where this process's number is valid: containers count their own; "-" if unknown."""
    try:
        return os.readlink(NAMESPACE)
    except OSError:
        return "-"
