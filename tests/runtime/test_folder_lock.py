"""An output folder belongs to one run at a time, and to nobody once that run has ended."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dino.errors import OptionError
from dino.runtime import folder_lock
from dino.runtime.folder_lock import LOCK_FILE, check_held, hold_folder
from dino.runtime.members import read_namespace

ROOT = Path(__file__).resolve().parents[2]
HOLD = (
    "import sys, time\n"
    "from dino.runtime.folder_lock import hold_folder\n"
    "with hold_folder(sys.argv[1], first=True):\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.fixture(autouse=True)
def _no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (name for pair in folder_lock.JOBS for name in pair):
        monkeypatch.delenv(name, raising=False)


def write_line(folder: Path, **changes: object) -> None:
    """Leave the lock of a run whose process is gone, without the kernel's lock."""
    who = {"host": "elsewhere", "namespace": read_namespace(), "pid": 4321, "started": 77}
    line = {**who, "jobs": {}, **changes}
    (folder / LOCK_FILE).write_text(json.dumps(line) + "\n")


def age_line(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / LOCK_FILE, (then, then))


def take(folder: Path) -> None:
    with hold_folder(folder, first=True):
        pass


def test_the_lock_says_who_holds_the_folder_and_ends_with_it(tmp_path: Path) -> None:
    with hold_folder(tmp_path, first=True):
        line = json.loads((tmp_path / LOCK_FILE).read_text())
        assert (line["host"], line["pid"]) == (socket.gethostname(), os.getpid())
        assert line["started"] > 0 and line["jobs"] == {}
    assert not list(tmp_path.iterdir())
    with hold_folder(tmp_path, first=False):
        assert not list(tmp_path.iterdir()), "only rank 0 holds it"


def test_a_second_run_is_refused_in_one_line(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    host = socket.gethostname()
    with pytest.raises(OptionError) as caught:
        take(tmp_path)
    assert str(caught.value).startswith(
        f"`output_dir` {tmp_path} belongs to another run: pid {other.pid} on host {host}, "
        "last sign of life "
    )
    assert caught.value.exit_code == 2
    age_line(tmp_path, 3600)
    with pytest.raises(OptionError, match="3600 s ago"):
        take(tmp_path)  # a frozen process keeps the kernel's lock
    assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == other.pid


def test_a_killed_run_leaves_the_folder_free(tmp_path: Path, other: subprocess.Popen[str]) -> None:
    other.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)  # a zombie, as long as nobody waits
    assert (tmp_path / LOCK_FILE).exists()
    take(tmp_path)


def test_two_runs_of_one_program_do_not_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with hold_folder(tmp_path, first=True):
        for name in (tmp_path, tmp_path / "link"):
            with pytest.raises(OptionError, match=f"pid {os.getpid()} on host"):
                take(name)
    take(tmp_path)


def test_the_run_of_another_host_is_dead_after_a_minute_of_silence(tmp_path: Path) -> None:
    write_line(tmp_path)
    age_line(tmp_path, 50)
    with pytest.raises(OptionError, match="pid 4321 on host elsewhere, last sign of life 5. s ago"):
        take(tmp_path)
    age_line(tmp_path, 70)
    take(tmp_path)


def test_a_process_of_this_host_that_is_gone_holds_nothing(tmp_path: Path) -> None:
    host = socket.gethostname()
    write_line(tmp_path, host=host, pid=2**22 + 1)  # above the largest number of a process
    take(tmp_path)
    write_line(tmp_path, host=host, pid=os.getppid(), started=1)  # its number was given again
    take(tmp_path)
    started = folder_lock._read_start(os.getppid())
    write_line(tmp_path, host=host, pid=os.getppid(), started=started)
    with pytest.raises(OptionError, match="belongs to another run"):
        take(tmp_path)


def test_a_container_of_the_same_host_name_counts_its_own_processes(tmp_path: Path) -> None:
    write_line(tmp_path, host=socket.gethostname(), namespace="pid:[1]", pid=2**22 + 1)
    with pytest.raises(OptionError, match="belongs to another run"):
        take(tmp_path)
    age_line(tmp_path, 70)
    take(tmp_path)


@pytest.mark.parametrize(
    ("names", "then", "now", "free"),
    [
        (folder_lock.JOBS[1], ("abc", "0"), ("abc", "1"), True),
        (folder_lock.JOBS[1], ("abc", "1"), ("abc", "1"), False),
        (folder_lock.JOBS[1], ("abc", "0"), ("xyz", "1"), False),
        (folder_lock.JOBS[1], ("none", "0"), ("none", "1"), False),  # every torchrun's default
        (folder_lock.JOBS[0], ("12", ""), ("12", "1"), True),
        (folder_lock.JOBS[0], ("12", "1"), ("13", "2"), False),
    ],
)
def test_a_restarted_job_takes_over_from_its_earlier_attempt(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, str],
    then: tuple[str, str],
    now: tuple[str, str],
    free: bool,
) -> None:
    for name, value in zip(names, then, strict=True):
        monkeypatch.setenv(name, value)
    write_line(tmp_path, jobs=dict(folder_lock._describe_self().jobs))
    for name, value in zip(names, now, strict=True):
        monkeypatch.setenv(name, value)
    if free:
        take(tmp_path)
    else:
        with pytest.raises(OptionError, match="on host elsewhere"):
            take(tmp_path)


def test_a_restart_does_not_take_the_folder_of_a_process_that_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: subprocess.Popen[str]
) -> None:
    line = json.loads((tmp_path / LOCK_FILE).read_text())
    (tmp_path / LOCK_FILE).write_text(json.dumps({**line, "jobs": {"TORCHELASTIC_RUN_ID=a": 0}}))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "a")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with pytest.raises(OptionError, match=f"pid {other.pid}"):
        take(tmp_path)


def test_without_locks_of_the_file_system_the_heartbeat_decides_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lack(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", lack)
    write_line(tmp_path)
    with pytest.raises(OptionError, match="on host elsewhere"):
        take(tmp_path)
    age_line(tmp_path, 70)
    with caplog.at_level(logging.WARNING):
        take(tmp_path)
    assert "this file system has no locks; another run is recognized by its heartbeat alone" in (
        caplog.text
    )


def test_the_heartbeat_is_a_thread_that_renews_the_files_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_lock, "BEAT_EVERY", 0.01)
    with hold_folder(tmp_path, first=True):
        age_line(tmp_path, 3600)
        for _ in range(6000):
            if time.time() - (tmp_path / LOCK_FILE).stat().st_mtime < 60:
                break
            time.sleep(0.01)
        else:
            pytest.fail("no heartbeat")
    assert "folder lock" not in {thread.name for thread in threading.enumerate()}


def test_a_run_whose_folder_was_taken_stops_and_touches_nothing(tmp_path: Path) -> None:
    check_held(tmp_path)  # a folder that it does not hold
    with hold_folder(tmp_path, first=True):
        check_held(tmp_path)
        write_line(tmp_path)
        with pytest.raises(OptionError, match="was taken over by another run"):
            check_held(tmp_path)
    assert json.loads((tmp_path / LOCK_FILE).read_text())["host"] == "elsewhere"


def test_a_run_whose_lock_was_removed_goes_on_until_another_begins(tmp_path: Path) -> None:
    with hold_folder(tmp_path, first=True):
        (tmp_path / LOCK_FILE).unlink()
        check_held(tmp_path)
        write_line(tmp_path)
        with pytest.raises(OptionError, match="was taken over"):
            check_held(tmp_path)


def test_a_lock_that_was_removed_in_the_meantime_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that ends removes its file; who opened it before must not lock what has no name."""
    locked, real = [], fcntl.lockf

    def lose_the_first(file: io.FileIO, how: int) -> None:
        real(file, how)
        locked.append(file)
        if len(locked) == 1:
            (tmp_path / LOCK_FILE).unlink()

    monkeypatch.setattr(fcntl, "lockf", lose_the_first)
    with hold_folder(tmp_path, first=True):
        assert len(locked) == 2 and (tmp_path / LOCK_FILE).exists()


@pytest.mark.parametrize("content", ["", "x", "[]", '{"host": 1}', '{"pid": "x"}', "\0" * 99])
def test_a_line_that_is_not_ours_holds_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / LOCK_FILE).write_text(content)
    take(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "victim")
    with pytest.raises(OptionError, match="cannot be written to"):
        take(tmp_path)
    assert (tmp_path / "victim").read_text() == "theirs"


def test_a_fork_does_not_give_the_folder_back(tmp_path: Path) -> None:
    with hold_folder(tmp_path, first=True):
        child = os.fork()
        if child == 0:
            folder_lock._held_here[tmp_path.resolve()].release()
            os._exit(0)
        os.waitpid(child, 0)
        check_held(tmp_path)
        assert (tmp_path / LOCK_FILE).exists()
