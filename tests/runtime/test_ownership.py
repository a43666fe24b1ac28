"""A file of the user is never replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from dino.config import RECIPE, as_recipe
from dino.errors import OptionError
from dino.files import MARK
from dino.runtime.ownership import check_own, check_recipe, write_recipe
from dino.training.config import TrainConfig

OURS = as_recipe(TrainConfig(), ())


def test_a_recipe_of_ours_is_replaced(tmp_path: Path) -> None:
    write_recipe(tmp_path, OURS)
    write_recipe(tmp_path, f"{OURS}# again\n")
    check_recipe(tmp_path)
    assert (tmp_path / RECIPE).read_text() == f"{OURS}# again\n"


@pytest.mark.parametrize("content", [b"", b"lr: 1\n", f"# mine\n{OURS}".encode(), b"\xff\xfe"])
def test_a_recipe_of_the_user_stays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / RECIPE).write_bytes(content)
    with pytest.raises(OptionError, match=r"recipe\.yaml was not written by .*`output_dir`"):
        write_recipe(tmp_path, OURS)
    assert (tmp_path / RECIPE).read_bytes() == content


def test_a_folder_of_a_recipes_name_is_refused(tmp_path: Path) -> None:
    (tmp_path / RECIPE).mkdir()
    with pytest.raises(OptionError, match=r"recipe\.yaml was not written by"):
        check_recipe(tmp_path)


def test_a_picture_is_ours_by_its_mark(tmp_path: Path) -> None:
    ours, missing = tmp_path / "ours.png", tmp_path / "missing.png"
    ours.write_bytes(b"\x89PNG" + b"\0" * 5000 + MARK.encode() + b"\0")
    check_own([ours, missing])
    for number, content in enumerate((b"", b"\x89PNG", b"\x89PNG" + b"\0" * 5000)):
        theirs = tmp_path / f"{number}.png"
        theirs.write_bytes(content)
        with pytest.raises(OptionError, match=rf"{number}\.png was not written by"):
            check_own([ours, theirs])
