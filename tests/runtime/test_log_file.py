"""log.txt is appended to and edited in place, and what others wrote into it stays."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dino.errors import OptionError
from dino.runtime import log_file
from dino.runtime.log_file import append_line, open_log, read_history

NOTE = "learning rate too high? größer\r\n".encode("utf-16")  # no UTF-8, no line of JSON


def line(epoch: int) -> bytes:
    return json.dumps({"train_loss": 1.5, "train_lr": 0.1, "epoch": epoch}).encode() + b"\n"


def write_lines(folder: Path, epochs: int) -> Path:
    path = folder / "log.txt"
    path.write_bytes(b"".join(map(line, range(epochs))))
    return path


def epochs_of(path: Path) -> list[int]:
    return [values["epoch"] for values in read_history(path)]


@pytest.mark.parametrize("epoch", range(5))
def test_a_resumed_run_takes_back_the_lines_it_will_write_anew(tmp_path: Path, epoch: int) -> None:
    path = write_lines(tmp_path, 4)
    before = path.stat().st_ino
    open_log(path, epoch)
    append_line(path, line(epoch).decode().strip())
    assert path.read_bytes() == b"".join(map(line, [*range(min(epoch, 4)), epoch]))
    assert path.stat().st_ino == before


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(1, 60))
def test_a_line_cut_short_by_a_crash_is_taken_back(tmp_path: Path, cut: int) -> None:
    path = write_lines(tmp_path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(2 * len(line(0)) + 8, len(whole) - cut)])
    open_log(path, 2)
    append_line(path, line(2).decode().strip())
    assert path.read_bytes() == whole


FOREIGN = (b"[1]", b"{}", b'{"epoch": null}', b'{"epoch": 3, "note": 1}', b"7", b"\0\0\0", NOTE)


@pytest.mark.parametrize("foreign", [*FOREIGN, b'{"train_loss": 1, "epoch": "x"}', b"[" * 200_000])
def test_foreign_lines_stay_byte_for_byte(tmp_path: Path, foreign: bytes) -> None:
    path = write_lines(tmp_path, 2)
    path.write_bytes(foreign + b"\n" + path.read_bytes() + foreign + b"\n" + line(2) + foreign)
    open_log(path, 1)
    append_line(path, line(1).decode().strip())
    assert path.read_bytes() == b"\n".join([foreign, line(0) + foreign, foreign, line(1)])
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.txt"]
    assert epochs_of(path) == [0, 1]


LINES = st.one_of(st.integers(0, 4).map(line), st.binary(max_size=6).map(lambda text: text + b"\n"))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(LINES, max_size=8), epoch=st.integers(0, 5), tail=st.binary(max_size=3))
def test_what_is_not_ours_stays_whatever_the_order(
    tmp_path: Path, lines: list[bytes], epoch: int, tail: bytes
) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"".join(lines) + tail)
    open_log(path, epoch)
    ours = {line(number) for number in range(5)}
    kept = [part for part in log_file.LINE.findall(path.read_bytes()) if part not in ours]
    assert b"".join(kept) == b"".join(part for part in lines if part not in ours) + tail
    assert all(number < epoch for number in epochs_of(path)[-1:])


def test_a_new_run_adds_to_the_log_of_another(tmp_path: Path) -> None:
    path = write_lines(tmp_path, 3)
    before = path.read_bytes()
    open_log(path, None)
    append_line(path, line(0).decode().strip())
    assert path.read_bytes() == before + line(0)
    open_log(path, 1)
    assert path.read_bytes() == before + line(0), "the other run's epochs 1 and 2 stay"


class Killed(Exception):
    """Stands for kill -9."""


@pytest.mark.parametrize("moment", range(3))
@pytest.mark.parametrize("later", [b"", b"a line of the console\n"])
def test_a_kill_within_an_edit_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, later: bytes
) -> None:
    path, content = tmp_path / "log.txt", b"one\n" + line(0) + b"two\n" + line(1) + b"three\n"
    path.write_bytes(content)
    synced = []

    def kill(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > moment:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        if moment == 2:
            patch.setattr(Path, "unlink", lambda *_, **__: kill(0))
        with pytest.raises(Killed):
            open_log(path, 1)
    path.write_bytes(path.read_bytes() + later)
    open_log(path, 1)
    assert path.read_bytes() == b"one\n" + line(0) + b"two\nthree\n" + later
    assert [entry.name for entry in tmp_path.iterdir()] == ["log.txt"]


def test_an_edit_cut_in_the_middle_of_its_bytes_is_finished(tmp_path: Path) -> None:
    path, content = tmp_path / "log.txt", b"one\n" + line(0) + b"two\n" + line(1) + b"three\n"
    whole = b"one\n" + line(0) + b"two\nthree\n"
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut] + content[cut:] + b"later\n")
        (tmp_path / ".log.txt.edit").write_bytes(b"%d\n" % len(content) + whole)
        open_log(path, 1)
        assert path.read_bytes() == whole + b"later\n"


@pytest.mark.parametrize("name", ["folder", "pipe", "missing/log.txt"])
def test_a_log_that_cannot_be_written_is_named_at_the_door(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        OptionError, match=rf"{name} .*; move it away, or name another `output_dir`"
    ):
        open_log(tmp_path / name, 0)


def test_a_full_disk_costs_the_newest_line_and_no_part_of_another(tmp_path: Path) -> None:
    path = write_lines(tmp_path, 2)
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 9, limits[1]))
    try:
        with pytest.raises(OSError, match="space|large"):
            append_line(path, line(2).decode().strip())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def test_a_console_redirected_into_the_log_survives(tmp_path: Path) -> None:
    code = (
        "import os, pathlib\n"
        "from dino.runtime.log_file import append_line, open_log\n"
        "path = pathlib.Path('log.txt')\n"
        "os.write(1, b'before\\n')\n"
        "open_log(path, 0)\n"
        "append_line(path, '{}')\n"
        "os.write(1, b'after')\n"
        "append_line(path, '{}')\n"
    )
    words = [sys.executable, "-c", code]
    with (tmp_path / "log.txt").open("wb") as console:
        root = {"PYTHONPATH": str(Path(__file__).parents[2])}
        subprocess.run(words, stdout=console, cwd=tmp_path, check=True, env=os.environ | root)
    assert (tmp_path / "log.txt").read_text() == "before\n{}\nafter\n{}\n"
