"""Cached files are this user's alone: links, pipes and files of others are never followed."""

import os
import stat
from pathlib import Path

import pytest

from dino.cache import (
    VARIABLE,
    check_owner,
    find_cache_root,
    hold_lock,
    make_folder,
    protect_compiled_code,
    read_own,
    write_own,
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DINO_CACHE_DIR": "/c"}, "/c"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/dino"),
        ({"HOME": "/h"}, "/h/.cache/dino"),
    ],
)
def test_the_cache_root_follows_the_environment(
    variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DINO_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(find_cache_root()) == expected


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_can_write_is_refused(tmp_path: Path, mode: int) -> None:
    folder = make_folder(tmp_path / "deep" / "own")
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(mode)
    with pytest.raises(PermissionError, match="is a link, another user's, or writable by others"):
        make_folder(folder)


def test_a_link_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(PermissionError, match="is a link"):
        make_folder(tmp_path / "link")
    with pytest.raises(PermissionError, match="is a link or another user's"):
        check_owner(tmp_path / "link")


def test_what_is_written_is_read_by_this_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_own(path, b"content")
    assert read_own(path) == b"content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_own(path, b"other")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    for check in (read_own, lambda _: make_folder(tmp_path)):
        with pytest.raises(PermissionError, match="another user's"):
            check(path)


def test_pipes_devices_and_open_files_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # nobody writes to it
    (tmp_path / "zero").symlink_to("/dev/zero")
    write_own(tmp_path / "open", b"")
    (tmp_path / "open").chmod(0o620)
    for name in ("pipe", "zero", "open"):
        with pytest.raises(OSError, match="is a link|symbolic links"):
            read_own(tmp_path / name)


def test_a_lock_behind_a_link_leaves_its_target_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic links"), hold_lock(tmp_path / "lock"):
        pass
    with pytest.raises(OSError, match="exists"):
        write_own(tmp_path / "lock", b"")
    assert (tmp_path / "precious").read_text() == "mine"


def test_compiled_code_is_kept_where_nobody_else_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv(VARIABLE, "/mine")
    protect_compiled_code()
    assert os.environ[VARIABLE] == "/mine"
    monkeypatch.delenv(VARIABLE)
    protect_compiled_code()
    usual = Path(os.environ[VARIABLE])
    assert usual.parent == tmp_path and stat.S_IMODE(usual.stat().st_mode) == 0o700
    monkeypatch.delenv(VARIABLE)
    usual.chmod(0o777)  # as anybody could have made it
    protect_compiled_code()
    assert Path(os.environ[VARIABLE]) not in (usual, tmp_path)
    assert Path(os.environ[VARIABLE]).parent == tmp_path
    assert f"writable by others: '{usual}'" in caplog.text
