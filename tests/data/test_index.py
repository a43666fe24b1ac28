"""A cached listing is the listing: whatever changed on disk, and whatever became of the index
file."""

import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dino.data import index, listing
from dino.data.index import Index
from dino.data.listing import list_folder

FRESH = index.FRESH  # before the fixture below changes it
ENDINGS = (".png",)
NAMES = ("a/1.png", "a/2.PNG", "a/deep/3.png", "b/4.png", "b/notes.txt", "0.png")
SORTED = ["0.png", "a/1.png", "a/2.PNG", "a/deep/3.png", "b/4.png"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every listing is worth an index, and no folder is too fresh for one."""
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "WORTH", 1)
    monkeypatch.setattr(index, "FRESH", 0)
    return tmp_path / "cache" / "index"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    for name in NAMES:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def list_all(root: Path) -> list[str]:
    return list(list_folder(root, ENDINGS).names)


def accept(_record: object) -> bool:
    return True


def scans(root: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """What is listed, and the folders that were looked into for it."""
    seen: list[str] = []
    plain = os.scandir

    def scan(path: str) -> Iterator[os.DirEntry]:
        seen.append(os.path.relpath(path, root))
        return plain(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scan)
        return list_all(root), seen


def test_the_second_listing_looks_into_no_folder(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert scans(tree, monkeypatch) == (SORTED, [".", "a", "a/deep", "b"])
    assert scans(tree, monkeypatch) == (SORTED, [])


def test_only_a_changed_folder_is_looked_into_again(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_all(tree)
    (tree / "a/deep/9.png").touch()
    (tree / "b/4.png").rename(tree / "b/5.png")
    expected = ["0.png", "a/1.png", "a/2.PNG", "a/deep/3.png", "a/deep/9.png", "b/5.png"]
    assert scans(tree, monkeypatch) == (expected, ["a/deep", "b"])


def test_a_change_whose_time_was_set_back_is_noticed(tree: Path) -> None:
    list_all(tree)
    before = os.stat(tree / "b")
    (tree / "b/4.png").unlink()
    os.utime(tree / "b", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert list_all(tree) == SORTED[:-1]


def test_new_and_removed_folders_are_noticed(tree: Path) -> None:
    list_all(tree)
    (tree / "a/deep/3.png").unlink()
    (tree / "a/deep").rmdir()
    (tree / "c").mkdir()
    (tree / "c/7.png").touch()
    assert list_all(tree) == ["0.png", "a/1.png", "a/2.PNG", "b/4.png", "c/7.png"]


def test_a_folder_that_changed_a_moment_ago_is_not_believed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        index, "FRESH", 3600 * 10**9
    )  # it could change again within one tick of the disk's clock
    list_all(tree)
    assert scans(tree, monkeypatch) == (SORTED, [".", "a", "a/deep", "b"])


@pytest.mark.parametrize(("age", "looked_into"), [(2, [".", "a", "a/deep", "b"]), (10, [])])
def test_a_listing_within_a_clock_tick_of_a_change_is_not_trusted(
    tree: Path, monkeypatch: pytest.MonkeyPatch, age: int, looked_into: list[str]
) -> None:
    """FAT keeps times to 2 s, so a folder that changes again in that time keeps its stamp."""
    monkeypatch.setattr(index, "FRESH", FRESH)
    changed = max(os.stat(folder).st_ctime_ns for folder in (tree, *tree.rglob("*")))
    with monkeypatch.context() as clock:
        clock.setattr(time, "time_ns", lambda: changed + age * 10**9)
        list_all(tree)
    assert scans(tree, monkeypatch) == (SORTED, looked_into)


def test_small_folders_leave_nothing_in_the_cache(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "WORTH", 1000)
    assert list_all(tree) == SORTED
    assert not cache.exists()


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_index_is_never_believed(
    tree: Path, cache: Path, place: float, value: int, cut: bool
) -> None:
    list_all(tree)
    (path,) = cache.glob("*.json")
    content = bytearray(path.read_bytes())
    at = int(place * (len(content) - 1))
    content[at:] = b"" if cut else bytes([value]) + content[at + 1 :]
    path.write_bytes(content)
    assert list_all(tree) == SORTED
    assert json.loads(path.read_bytes().partition(b"\n")[2])[0][1] == "folder"  # and is whole again


def test_an_index_of_another_folder_is_never_believed(
    tree: Path, cache: Path, tmp_path: Path
) -> None:
    list_all(tree)
    (path,) = cache.glob("*.json")
    other = Index("folder", "elsewhere", accept)
    path.rename(other.path)
    assert Index("folder", "elsewhere", accept).known == {}


def test_a_cache_that_cannot_be_written_to_costs_speed_alone(
    tree: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.write_text("a file where the folder should be")
    assert list_all(tree) == SORTED
    assert "set DINO_CACHE_DIR to a writable folder" in caplog.text


def test_a_full_disk_leaves_the_old_index(
    tree: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_all(tree)
    (path,) = cache.glob("*.json")
    before = path.read_bytes()
    (tree / "b/6.png").touch()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        assert list_all(tree) == [*SORTED, "b/6.png"]
    assert path.read_bytes() == before
    assert not list(cache.glob("*.tmp"))


def _list_slowly(root: str, seen: str) -> None:
    plain = listing.look_into

    def count(path: str, endings: tuple[str, ...]) -> listing.Folder:
        with open(seen, "a") as file:
            file.write(f"{path}\n")
        time.sleep(0.1)
        return plain(path, endings)

    listing.look_into, index.WORTH, index.FRESH = count, 1, 0
    assert list_all(Path(root)) == SORTED


def test_processes_that_start_together_list_once(tree: Path, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    jobs = [
        fork.Process(target=_list_slowly, args=(str(tree), str(tmp_path / "seen")))
        for _ in range(3)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(60)
    assert [job.exitcode for job in jobs] == [0, 0, 0]
    looked = (tmp_path / "seen").read_text().splitlines()
    assert all(
        looked.count(str(tree / name)) == 1 for name in ("a", "a/deep", "b")
    )  # the root shows that it is large


TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    records=st.dictionaries(
        TEXT, st.lists(TEXT | st.integers(), max_size=4), min_size=1, max_size=5
    ),
    place=TEXT,
)
def test_records_come_back_as_they_were(cache: Path, records: dict[str, list], place: str) -> None:
    with Index("folder", place, accept) as written:
        for name, found in records.items():
            written.store(name, (1, 2, 3), found, 1)
    read = Index("folder", place, accept)
    assert {name: read.look_up(name, (1, 2, 3)) for name in records} == records
    assert all(read.look_up(name, (1, 2, 4)) is None for name in records)


def test_a_name_that_is_no_utf8_comes_back(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        index.logger, "disabled", True
    )  # pytest's workers cannot send such a name in a report
    name = os.fsdecode(b"\xff\xfe.png")
    with Index("folder", name, accept) as written:
        written.store(name, (1, 2, 3), [[name], []], 1)
    assert Index("folder", name, accept).look_up(name, (1, 2, 3)) == [[name], []]
