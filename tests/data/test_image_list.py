"""A list names files that exist, or the run ends before it starts, with the line and a remedy."""

import codecs
import os
from pathlib import Path

import pytest

from dino.data.image_list import LONGEST, read_list
from dino.data.sources import open_training_source
from dino.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.png", "b/c.png", "ü.png", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def read(root: Path, text: str, encoding: str = "utf-8") -> tuple[str, ...]:
    (root / "list.txt").write_bytes(text.encode(encoding))
    return read_list(root / "list.txt", "`data_path`").names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_of_any_editor_are_read(root: Path, encoding: str) -> None:
    assert read(root, "ü.png\r\nb/c.png\n\n.hidden.png", encoding) == (
        "ü.png",
        "b/c.png",
        ".hidden.png",
    )


@pytest.mark.parametrize(
    ("line", "remedy"),
    [
        ("b\\c.png", "write / between folders"),
        ("C:\\photos\\c.png", "write / between folders"),
        ("~/c.png", "write out the home folder"),
        ("http://host/c.png", "download it: a list names files"),
        ("s3://bucket/c.png", "download it"),
        ("c.png", "names are absolute, or relative to "),
        ("gone/c.png", "names are absolute, or relative to "),
        ("a\0.png", "names are absolute"),
        ("x" * 300 + ".png", "names are absolute"),
        ("pipe.png", "names are absolute"),
        ("broken.png", "names are absolute"),
    ],
)
def test_a_name_of_no_file_is_told_with_its_line_before_the_run(
    root: Path, line: str, remedy: str
) -> None:
    os.mkfifo(root / "pipe.png")
    (root / "broken.png").symlink_to("nowhere.png")
    expected = r"2 of 4 listed images do not exist, the first is '.*' in line 3; "
    with pytest.raises(DataError, match=expected + remedy) as caught:
        read(root, f"a.png\n\n{line}\nb/c.png\n{line}x.png\n")
    assert len(str(caught.value)) < 600


def test_names_relative_to_the_current_folder_are_explained(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    (root / "lists").mkdir()
    with pytest.raises(DataError, match="names are relative to the folder of the list, .*/lists"):
        read(root / "lists", "a.png")


def test_repeated_lines_are_kept_and_counted(root: Path) -> None:
    read(root, "a.png\nb/c.png\na.png\n")
    source = open_training_source(str(root / "list.txt"))
    assert source.names == ("a.png", "b/c.png", "a.png")
    expected = f"list {root / 'list.txt'} (1 of its lines repeat images), 3 images, no classes"
    assert source.describe() == expected


def test_one_endless_line_is_no_list(root: Path) -> None:
    with (root / "list.txt").open("wb") as file:
        file.truncate(300 << 20)  # takes no disk
    with pytest.raises(DataError, match=f"line 1 has more than {LONGEST} letters"):
        read_list(root / "list.txt", "`data_path`")


@pytest.mark.parametrize("content", [codecs.BOM_UTF16_LE + b"a", b"\xff\x00", b"\xfe\xff\xd8\x00"])
def test_bytes_that_are_no_text_are_refused(root: Path, content: bytes) -> None:
    (root / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"list.txt is not a text file that lists images"):
        read_list(root / "list.txt", "`data_path`")
