"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dino.errors import OptionError
from dino.files import atomic_write


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


def test_a_file_that_cannot_be_written_leaves_nothing_and_is_named_with_its_flag(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OptionError, match=r"^--json .*folder cannot be written: "):
        with atomic_write(tmp_path / "folder", "--json") as temporary:
            temporary.write_text("text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
