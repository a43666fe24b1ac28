"""A resumed run is the same run of a service; a copy of its folder is another one."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest

from dino.runtime.sinks.base import Start
from dino.runtime.sinks.run_ids import FILE, find_id, keep_id


@pytest.fixture(autouse=True)
def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    caplog.set_level(logging.INFO)
    return caplog.messages


def find(folder: Path, iteration: int = 10) -> str | None:
    return find_id(Start(folder=folder, iteration=iteration), "wandb")


def test_the_id_is_kept_for_each_service(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keep_id(tmp_path, "wandb", "abc")
    keep_id(tmp_path, "mlflow", "def")
    keep_id(tmp_path, "wandb", "ghi")
    assert find(tmp_path) == "ghi" and caplog.messages == []
    assert find_id(Start(folder=tmp_path, iteration=1), "mlflow") == "def"
    assert find(tmp_path, iteration=0) is None, "a run that starts over is a new one"
    assert caplog.messages == []


@pytest.mark.parametrize(
    "content",
    [None, "", "{", "[]", "[" * 10**5, '{"wandb": 3}', '{"wandb": {"id": "abc"}}', "\xff"],
)
def test_a_lost_or_damaged_file_means_a_new_run_and_one_line(
    content: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if content is not None:
        (tmp_path / FILE).write_text(content, encoding="latin-1")
    assert find(tmp_path) is None
    assert caplog.messages == [
        f"wandb: a new run begins at iteration 10: {tmp_path / FILE} names no run"
    ]
    keep_id(tmp_path, "wandb", "abc")
    assert find(tmp_path) == "abc"


def test_a_copy_is_a_new_run_and_a_folder_that_moved_is_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, copy, moved = tmp_path / "run", tmp_path / "copy", tmp_path / "moved"
    run.mkdir()
    keep_id(run, "wandb", "abc")
    shutil.copytree(run, copy)
    assert find(copy) is None
    assert caplog.messages == [
        f"wandb: a new run begins at iteration 10: {copy} is a copy of {run}, whose run it is"
    ]
    keep_id(copy, "wandb", "def")
    assert (find(run), find(copy)) == ("abc", "def")
    (tmp_path / "link").symlink_to(run)
    assert find(tmp_path / "link") == "abc"
    run.rename(moved)
    assert find(moved) == "abc"


def test_a_file_that_cannot_be_written_costs_the_id_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE).mkdir()
    keep_id(tmp_path, "wandb", "abc")
    assert "wandb will have a new run when this one resumes" in caplog.text
    assert json.dumps("abc") not in caplog.text
