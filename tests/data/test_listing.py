"""Every image below a folder is listed once, and what is passed over is counted and named."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dino.data import index, listing
from dino.data.listing import Listing, describe, is_hidden, list_folder, show

ENDINGS = (".png",)


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def listed(root: Path) -> Listing:
    return list_folder(root, ENDINGS)


@pytest.mark.parametrize(
    "name",
    [
        *(".ipynb_checkpoints/a-checkpoint.png", "__MACOSX/a.png", "._a.png", ".DS_Store"),
        *("Thumbs.db", "@eaDir/a.png", "lost+found/a.png", "$RECYCLE.BIN/a.png", ".git/a.png"),
        *("System Volume Information/a.png", "desktop.ini", ".hidden.png"),
    ],
)
def test_hidden_and_system_files_are_no_images_at_any_depth(tmp_path: Path, name: str) -> None:
    touch(tmp_path, "ant/1.png", name, f"ant/{name}", f"ant/deep/{name}")
    found = listed(tmp_path)
    first = name.split("/")[0]
    assert found.names == ("ant/1.png",)
    assert found.passed == {listing.HIDDEN: (3, first)}
    assert describe(found.passed) == f"3 hidden or of the system ({first})"


def test_a_hidden_folder_that_is_named_is_listed(tmp_path: Path) -> None:
    assert listed(touch(tmp_path / ".cache", "1.png")).names == ("1.png",)


def test_other_files_are_counted_by_their_endings(tmp_path: Path) -> None:
    touch(tmp_path, "1.png", "a.HEIC", "b/c.heic", "d.jxl", "README", "x.2020", "y.tar", "tail.")
    assert listed(tmp_path).passed == {
        ".heic": (2, "a.HEIC"),
        ".jxl": (1, "d.jxl"),
        ".tar": (1, "y.tar"),
        "without an ending": (3, "README"),
    }


def test_only_the_most_frequent_kinds_are_shown() -> None:
    passed = {f".{letter}": (count, f"1.{letter}") for count, letter in enumerate("abcdefgh", 1)}
    shown = "8 .h (1.h), 7 .g (1.g), 6 .f (1.f), 5 .e (1.e), 4 .d (1.d), 3 .c (1.c), 3 others"
    assert describe(passed) == shown
    assert describe({}) == ""
    assert show("a\nb") == r"'a\nb'" and len(show("x" * 5000)) == 80


def test_links_in_a_circle_are_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "data", "a/1.png", "b/2.png")
    touch(tmp_path, "beside.png")
    (tmp_path / "data/a/back").symlink_to("..")
    (tmp_path / "data/b/self").symlink_to("self")
    (tmp_path / "data/up").symlink_to(tmp_path)
    found = listed(tmp_path / "data")
    assert found.names == ("a/1.png", "b/2.png", "up/beside.png")
    assert found.passed == {
        "reached again through a link": (2, "a/back"),
        "links to nothing": (1, "b/self"),
    }


def test_a_linked_folder_is_listed_under_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path / "data", "z/1.png")
    touch(tmp_path / "elsewhere", "2.png")
    for name, target in {"a": "z", "b": "../elsewhere", "c": str(tmp_path / "elsewhere")}.items():
        (tmp_path / "data" / name).symlink_to(target)
    found = listed(tmp_path / "data")
    assert found.names == ("b/2.png", "z/1.png")
    assert found.passed == {"reached again through a link": (2, "a")}


def test_a_linked_image_is_listed_under_its_own_name(tmp_path: Path) -> None:
    touch(tmp_path / "data", "z/1.png")
    touch(tmp_path / "elsewhere", "2.png", "3.png")
    (tmp_path / "mount").symlink_to(tmp_path / "data")
    links = {
        "a.png": "z/1.png",
        "b.png": str(tmp_path / "mount/z/1.png"),
        "c.png": "../elsewhere/2.png",
        "z/d.png": str(tmp_path / "elsewhere/2.png"),
        "e.png": "../elsewhere/3.png",
        "f.png": "a.png",
    }
    for name, target in links.items():
        (tmp_path / "data" / name).symlink_to(target)
    for root in ("data", "mount"):
        found = listed(tmp_path / root)
        assert found.names == ("c.png", "e.png", "z/1.png")
        assert found.passed == {"reached again through a link": (4, "a.png")}


def test_links_to_nothing_pipes_and_devices_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "1.png")
    (tmp_path / "2.png").symlink_to("gone.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.png")
    found = listed(tmp_path)
    assert found.names == ("1.png",)
    assert found.passed == {
        "links to nothing": (1, "2.png"),
        "neither files nor folders": (2, "pipe.png"),
    }


@pytest.fixture
def deep(tmp_path: Path) -> Iterator[Path]:
    """A folder 1200 deep with an image; Python itself cannot remove it."""
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        Path("1.png").touch()
        yield tmp_path
        Path("1.png").unlink()
        for _ in range(1200):
            os.chdir("..")
            os.rmdir("d")
    finally:
        os.chdir(before)


def test_folders_are_listed_1200_deep(deep: Path) -> None:
    assert listed(deep).names == ("d/" * 1200 + "1.png",)


FORGED: list[Any] = [
    None,
    5,
    {"": [[0, 0, 0], None]},
    [[], {"": 5}],
    [[], []],
    *(
        [None, {"": [stamp, record]}]
        for stamp in (None, 5, "x", [0, "x"])
        for record in ([[], [], {}, {}], None)
    ),
    *(
        [None, {"": [True, record]}]
        for record in (
            [["../../secret.png"], [], {}, {}],
            [[".."], [], {}, {}],
            [[], ["/etc"], {}, {}],
            [[5], [], {}, {}],
            [["a\0.png"], [], {}, {}],
            [["1.png"], [], {"1.png": 5}, {}],
            [[], [], {}, {"x": 5}],
            [[], [], {}, {"x": ["1", "y"]}],
            [[], [], 5, {}],
            [5, [], {}, {}],
            [[], [], {}],
            "1234",
        )
    ),
]


def keep_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A folder of one image, and the file that keeps its listing."""
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "WORTH", 1)
    root = touch(tmp_path / "data", "1.png")
    assert listed(root).names == ("1.png",)
    (path,) = (tmp_path / "cache/index").glob("*.json")
    return root, path


@pytest.mark.parametrize("content", FORGED)
def test_a_forged_index_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: Any
) -> None:
    """The checksum is right, the key too where it is None, and the stamp where it is True."""
    monkeypatch.setattr(index, "FRESH", 0)
    root, path = keep_index(tmp_path, monkeypatch)
    key, records = json.loads(path.read_bytes().partition(b"\n")[2])
    stamp = records[""][0]
    if isinstance(content, list) and content[0] is None:
        (record,) = content[1].values()
        content = [key, {"": [stamp if record[0] is True else record[0], record[1]]}]
    body = json.dumps(content).encode()
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert listed(root).names == ("1.png",)


def test_an_index_with_deep_lists_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, path = keep_index(tmp_path, monkeypatch)
    body = b"[" * 200_000
    path.write_bytes(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    assert listed(root).names == ("1.png",)


def test_an_index_of_somebody_else_is_neither_read_nor_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, path = keep_index(tmp_path, monkeypatch)
    before = path.read_bytes()
    touch(root, "2.png")
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert listed(root).names == ("1.png", "2.png")
    assert "another user's" in caplog.text and "DINO_CACHE_DIR" in caplog.text
    assert path.read_bytes() == before


NAME = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(NAME.filter(lambda name: name not in (".", "..")), max_size=5))
def test_every_name_is_listed_or_counted(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    root = tmp_path_factory.mktemp("tree")
    made = set()
    for name in (
        f"{name[:40]}.png" if number % 2 else name[:40] for number, name in enumerate(names)
    ):
        (root / name).touch()
        made.add(name)
    found = listed(root)
    images = sorted(n for n in made if n.lower().endswith(".png") and not is_hidden(n))
    assert list(found.names) == images
    assert sum(count for count, _ in found.passed.values()) == len(made) - len(images)
