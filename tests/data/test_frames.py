"""Frames come by number; hidden files, folders and pipes are none."""

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from dino.data.frames import list_pictures, order_by_numbers


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 10**6)), unique=True))
def test_names_are_ordered_by_text_and_number(parts: list[tuple[str, int]]) -> None:
    paths = [Path(f"{text}_{number}.jpg") for text, number in parts]
    assert sorted(paths, key=order_by_numbers) == [
        Path(f"{text}_{number}.jpg") for text, number in sorted(parts)
    ]


def test_only_visible_regular_files_are_frames(tmp_path: Path) -> None:
    for name in ("10.jpg", "2.PNG", "1.jpg", "01.jpg", "._2.jpg", ".3.png", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "4.jpg").mkdir()
    os.mkfifo(tmp_path / "5.jpg")
    assert [path.name for path in list_pictures(tmp_path)] == ["01.jpg", "1.jpg", "2.PNG", "10.jpg"]
