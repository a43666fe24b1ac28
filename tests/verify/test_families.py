"""Whoever was started is found and ended, also in a session of its own and after its parent has
died."""

import os
import subprocess
import sys
import time

from dino.verify.families import TOKEN, end_family, find_family

SLEEP = "import time; time.sleep(600)"
PARENT = f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {SLEEP!r}], start_new_session=True)
print(child.pid, flush=True)
os._exit(0) if sys.argv[1] == "dies" else child.wait()
"""


def start(token, word):
    """A parent with a child in a session of its own: both processes, and the child's number."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, word],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, TOKEN: token},
        start_new_session=True,
    )
    return parent, int(parent.stdout.readline())


def is_there(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(*pids):
    end = time.monotonic() + 60
    while any(map(is_there, pids)):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_child_in_another_session_is_ended_with_its_parent():
    parent, child = start("family-1-", "waits")
    assert set(find_family([parent.pid], "family-1-")) == {parent.pid, child}
    assert find_family([parent.pid], "") == [parent.pid]
    end_family([parent.pid], "family-1-")
    parent.communicate()
    wait_until_gone(parent.pid, child)


def test_a_child_whose_parent_has_died_is_ended_and_others_are_left():
    parent, child = start("family-2-", "dies")
    other, others_child = start("family-20-", "waits")
    parent.wait()
    end_family([parent.pid], "family-2-")
    wait_until_gone(child)
    parent.stdout.close()
    assert is_there(other.pid) and is_there(others_child)
    end_family([other.pid], "family-20-")
    other.communicate()
    wait_until_gone(others_child)
