"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dino.errors import OptionError
from dino.files import atomic_draft, atomic_write, read_bounded


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "before"
        raise KeyError
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_text() == "before"
    with atomic_write(path) as temporary:
        temporary.write_text("after")
    assert [file.name for file in tmp_path.iterdir()] == ["file"] and path.read_text() == "after"


def test_two_processes_may_write_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with atomic_write(tmp_path / "file") as one:
        one.write_text("one")
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with atomic_write(tmp_path / "file") as other:
            other.write_text("other")
        assert (tmp_path / "file").read_text() == "other"
    assert (tmp_path / "file").read_text() == "one" and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_cannot_be_written_leaves_nothing_and_is_named_with_its_flag(
    tmp_path: Path,
) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError, match=r"^--json .*folder cannot be written: "):
        with atomic_write(tmp_path / "folder", "--json") as temporary:
            temporary.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_without_a_flag_the_systems_error_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_write(tmp_path / "nowhere" / "file") as temporary:
        temporary.write_text("text")


def test_an_error_without_the_name_of_a_flag_begins_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"^{tmp_path}/nowhere/file cannot be written: "):
        with atomic_write(tmp_path / "nowhere" / "file", "") as temporary:
            temporary.write_text("text")


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def fill(stop: bool) -> None:
        with atomic_write(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / "file").write_text("text")
            if stop:
                raise KeyError

    with pytest.raises(KeyError):
        fill(stop=True)
    assert not list(tmp_path.iterdir())
    fill(stop=False)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == [
        "folder",
        "folder/file",
    ]


def test_who_writes_alone_reuses_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / "file.partial").write_text("half a file")
    with atomic_write(tmp_path / "file", alone=True) as temporary:
        assert temporary == tmp_path / "file.partial"
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (
        tmp_path / "file"
    ).read_text() == "whole"


def test_a_checked_folder_appears_in_one_rename_or_joins_the_files_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renamed: list[str] = []
    rename = os.replace

    def note(source: Path, target: Path) -> None:
        renamed.append(target.name)
        rename(source, target)

    monkeypatch.setattr(os, "replace", note)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "other").touch()
    for name in ("new", "empty", "full"):
        with atomic_draft(tmp_path / name, "--output") as draft:
            draft.mkdir()
            (draft / "file").write_text(name)
        assert (tmp_path / name / "file").read_text() == name
    assert renamed == ["new", "empty", "file"] and (tmp_path / "full" / "other").exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_read_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    assert read_bounded(tmp_path / "file", 4) == b"1234"
    with pytest.raises(OSError, match="it has more than 3 bytes"):
        read_bounded(tmp_path / "file", 3)
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="it is not a regular file"):
            read_bounded(path, 3)
    with pytest.raises(FileNotFoundError):
        read_bounded(tmp_path / "nowhere", 3)
