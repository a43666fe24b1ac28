"""A process can be told from others, and the kernel knows how it is."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from dino.runtime import members
from dino.runtime.members import Member


@pytest.fixture
def child() -> Iterator[subprocess.Popen]:
    """A process that does nothing, and is not waited for when it ends."""
    command = [sys.executable, "-S", "-c", "print('up', flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def describe(process: subprocess.Popen) -> Member:
    """The member that a process would call itself."""
    state = members.read_state(process.pid)
    assert state is not None
    return replace(Member.here(), pid=process.pid, start=state[1])


def test_a_member_is_read_as_it_was_written() -> None:
    here = Member.here()
    assert Member.parse(str(here)) == here
    assert here.pid == os.getpid()
    assert here.is_running() and not here.is_gone()
    assert here.place == f"process {os.getpid()} on {here.host}"


def test_a_stopped_process_is_neither_running_nor_gone(child: subprocess.Popen) -> None:
    member = describe(child)
    child.send_signal(signal.SIGSTOP)
    os.waitpid(child.pid, os.WUNTRACED)
    assert not member.is_running() and not member.is_gone()


def test_a_killed_process_is_gone_although_nobody_waited_for_it(child: subprocess.Popen) -> None:
    member = describe(child)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert member.is_gone() and not member.is_running()
    child.wait()
    assert member.is_gone() and not member.is_running()


def test_another_process_of_the_same_number_is_not_the_member() -> None:
    before = replace(Member.here(), start="1")
    assert before.is_gone() and not before.is_running()


def test_only_a_known_kernel_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Member.here()
    assert here.shares_kernel(replace(here, pid=1))
    assert not here.shares_kernel(replace(here, kernel="another"))
    monkeypatch.setattr(os, "readlink", lambda _: (_ for _ in ()).throw(OSError))
    unknown = Member.here()
    assert unknown.kernel == "-" and not unknown.shares_kernel(unknown)
