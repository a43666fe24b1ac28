"""One process of a host lists a large place, and the others map what it wrote: the same images, as
long as nothing on disk has changed and nobody else could have written the file."""

import io
import logging
import multiprocessing
import os
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dino.data import (
    columns,
    file_sources,
    image_list,
    index,
    kept,
    listing,
    shard_sources,
    shards,
    table_images,
)
from dino.data.columns import Array, Names, Numbers
from dino.data.decode import EXTENSIONS
from dino.data.image_source import ImageSource
from dino.data.sources import open_images, open_training_source
from dino.errors import DataError

NAMES = ("ant/1.png", "ant/2.png", "bee/3.png", os.fsdecode(b"bee/\xff.png"))
LISTERS = (
    (listing, "look_into"),
    (shards, "scan_shard"),
    (image_list, "_list_files"),
    (table_images, "scan_table"),
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every place is large and none too fresh; returns the folder of the files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(columns, "LARGE", 1)
    monkeypatch.setattr(index, "WORTH", 1)
    monkeypatch.setattr(index, "FRESH", 0)
    return kept.find_folder()


def make_folder(root: Path) -> Path:
    for name in (*NAMES, "ant/notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def make_list(root: Path) -> Path:
    make_folder(root)
    (root / "list.txt").write_text("bee/3.png\nant/1.png\nant/1.png\n")
    return root / "list.txt"


def make_shards(root: Path) -> Path:
    make_folder(root)
    (root / "shards").mkdir()
    for number in range(2):
        with tarfile.open(root / f"shards/train-{number}.tar", "w") as tar:
            for name in NAMES[2 * number : 2 * number + 2]:
                tar.add(root / name, name)
    return root / "shards"


def make_tables(root: Path, ending: str) -> Path:
    (root / "tables").mkdir(parents=True)
    content = io.BytesIO()
    Image.new("L", (4, 4)).save(content, "png")
    for number in range(2):
        rows = pa.table(
            {"image": [content.getvalue(), None, content.getvalue()], "label": [number] * 3}
        )
        path = root / f"tables/train-{number}{ending}"
        if ending == ".parquet":
            pq.write_table(rows, path)
        else:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, rows.schema) as out:
                out.write_table(rows)
    return root / "tables"


def make_parquet(root: Path) -> Path:
    return make_tables(root, ".parquet")


def make_arrow(root: Path) -> Path:
    return make_tables(root, ".arrow")


MAKERS = (make_folder, make_list, make_shards, make_parquet, make_arrow)


def list_here(
    _kind: str, _root: Path, _place: Sequence[str], list_images: Callable, *_: object
) -> ImageSource:
    return list_images(index.pass_by)[0]


def list_plainly(place: Path) -> ImageSource:
    """The images as objects, listed from the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "LARGE", 10**9)
        patch.setattr(index, "WORTH", 10**9)
        for module in (file_sources, shard_sources, table_images):
            patch.setattr(module, "list_once", list_here)
        return open_images(str(place))


def count_listings(patch: pytest.MonkeyPatch) -> list[str]:
    """The folders and shards that are looked into from now on."""
    seen: list[str] = []
    for module, name in LISTERS:
        plain = getattr(module, name)

        def look(path: object, *rest: object, plain: Callable = plain) -> object:
            seen.append(str(path))
            return plain(path, *rest)

        patch.setattr(module, name, look)
    return seen


@pytest.mark.parametrize("make", MAKERS)
def test_the_second_process_maps_what_the_first_one_listed(
    make: Callable[[Path], Path], tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make(tmp_path / "data")
    plain = list_plainly(place)
    assert isinstance(plain.names, tuple)
    first = open_images(str(place))
    seen = count_listings(monkeypatch)
    if place.name != "tables":  # to find the tables, their folder is looked into
        monkeypatch.setattr(index, "json", None)  # nor is an index read
    second = open_images(str(place))
    assert [path for path in seen if Path(path).name not in ("shards", "tables")] == []
    for source in (first, second):
        assert isinstance(source.names, Names)
        assert source == plain
        assert source.fingerprint() == plain.fingerprint()
        assert source.describe() == plain.describe()
        assert source.passed == plain.passed
        if plain.labels is not None:
            assert isinstance(source.labels, Numbers)
        if plain.members is not None:
            assert isinstance(source.members.places, Array)
            assert np.array_equal(source.members.places, plain.members.places)
            assert source.members.shards == plain.members.shards
        assert [str(source.file(i)) for i in range(3)] == [str(plain.file(i)) for i in range(3)]
    (path,) = (path for path in folder.iterdir() if path.suffix != ".lock")
    assert path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("make", MAKERS)
def test_a_change_on_disk_is_noticed(make: Callable[[Path], Path], tmp_path: Path) -> None:
    place = make(tmp_path / "data")
    count = len(open_images(str(place)))
    if place.suffix == ".txt":
        (tmp_path / "data/bee/3.png").unlink()
        with pytest.raises(DataError, match="1 of 3 listed images do not exist"):
            open_images(str(place))
        return
    if files := list(place.glob("train-1.*")):
        files[0].unlink()
    else:
        (place / "bee/3.png").unlink()
        (place / "bee").joinpath(os.fsdecode(b"\xff.png")).unlink()
    changed = open_images(str(place))
    assert (len(changed), count) == (2, 4)
    assert changed == list_plainly(place)


def test_a_folder_that_changed_a_moment_ago_is_listed_by_each_process(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index, "FRESH", 3600 * 10**9)
    place = make_folder(tmp_path / "data")
    assert open_images(str(place)) == list_plainly(place)
    assert isinstance(open_images(str(place)).names, Names)  # its own, which loaders share
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_tables_of_paths_are_listed_by_each_process_at_once(tmp_path: Path, folder: Path) -> None:
    """Nothing tells that a file which a table names is gone."""
    place = make_folder(tmp_path / "data")
    pq.write_table(pa.table({"image": list(NAMES[:3])}), place / "table.parquet")
    source = open_images(str(place / "table.parquet"))
    assert [*source.names] == list(NAMES[:3])
    assert not folder.exists() or list(folder.iterdir()) == []


def test_names_of_an_image_that_cannot_be_read_now_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_parquet(tmp_path / "data")
    with monkeypatch.context() as patch:
        patch.setattr(table_images, "open_picture", lambda content: 1 / 0)
        first = open_images(str(place))
    seen = count_listings(monkeypatch)
    assert [*open_images(str(place)).names] == [*first.names]
    assert len([path for path in seen if path.endswith(".parquet")]) == 2


def test_small_places_leave_nothing(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "LARGE", 1000)
    monkeypatch.setattr(index, "WORTH", 1000)
    for make in MAKERS:
        assert isinstance(open_images(str(make(tmp_path / make.__name__))).names, tuple)
    assert not folder.exists()


def read_file(root: Path) -> ImageSource | None:
    return kept.KeptFile(
        "folder", root, (str(root), str(root), *EXTENSIONS), index.read_stamp
    ).read()


def find_file(folder: Path) -> Path:
    return next(path for path in folder.iterdir() if not path.suffix)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1), value=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_file_is_never_believed(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, place: float, value: int, cut: bool
) -> None:
    root = make_folder(tmp_path_factory.mktemp("data"))
    whole = open_images(str(root))
    path = max(folder.iterdir(), key=lambda path: (not path.suffix, path.stat().st_mtime_ns))
    content = bytearray(path.read_bytes())
    at = int(place * (len(content) - 1))
    content[at:] = b"" if cut else bytes([value]) + content[at + 1 :]
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o600)
    assert open_images(str(root)) == whole
    assert read_file(root) == whole


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_others_can_write_is_not_read(what: str, tmp_path: Path, folder: Path) -> None:
    place = make_folder(tmp_path / "data")
    open_images(str(place))
    path = find_file(folder)
    forged = path.read_bytes()
    (folder if what == "folder" else path).chmod(0o777)
    assert read_file(place) is None
    assert open_images(str(place)) == list_plainly(place)
    if what == "file":  # it was replaced by an own one
        assert find_file(folder).stat().st_mode & 0o777 == 0o600
    else:
        assert path.read_bytes() == forged


def test_a_file_of_another_user_is_not_read(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_folder(tmp_path / "data")
    open_images(str(place))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    monkeypatch.setattr(kept, "find_folder", lambda: folder)
    seen = count_listings(monkeypatch)
    assert open_images(str(place)) == list_plainly(place)
    assert str(place / "ant") in seen


def test_a_file_of_another_place_is_not_read(tmp_path: Path, folder: Path) -> None:
    open_images(str(make_folder(tmp_path / "data")))
    other = kept.KeptFile("folder", Path("elsewhere"), ("elsewhere",), index.read_stamp)
    find_file(folder).rename(other.path)
    assert other.read() is None


def test_what_a_killed_process_left_is_written_over(tmp_path: Path, folder: Path) -> None:
    place = make_folder(tmp_path / "data")
    open_images(str(place))
    path = find_file(folder)
    path.rename(f"{path}.partial")
    assert open_images(str(place)) == list_plainly(place)
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".lock"]


def test_a_folder_that_cannot_be_written_costs_memory_alone(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file where the folder should be")
    place = make_folder(tmp_path / "data")
    assert open_images(str(place)) == list_plainly(place)
    assert "each process lists the images" in caplog.text
    assert "set TMPDIR" in caplog.text


def test_a_system_without_a_temporary_folder_lists_small_places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise FileNotFoundError(2, "No usable temporary directory found")

    place = make_folder(tmp_path / "data")
    monkeypatch.setattr(columns, "LARGE", 1000)
    monkeypatch.setattr(index, "WORTH", 1000)
    monkeypatch.setattr(tempfile, "gettempdir", fail)
    assert open_images(str(place)) == list_plainly(place)


def test_hosts_that_share_a_folder_have_files_of_their_own(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_folder(tmp_path / "data")
    first = open_images(str(place))
    path, content = find_file(folder), find_file(folder).read_bytes()
    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(nodename="other"))
    assert open_images(str(place)) == first
    assert len([path for path in folder.iterdir() if not path.suffix]) == 2
    assert path.read_bytes() == content


def test_a_training_run_limits_what_it_maps(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "data")
    source = open_training_source(str(place), 2)
    assert source.names == ("ant/1.png", "bee/3.png")
    assert source.labels == (0, 1)


def _list_slowly(place: str, log: str, fails: bool) -> None:
    """List as a rank does; `log` gets a line for each folder and each process that mapped."""
    logging.disable()
    columns.LARGE, index.WORTH, index.FRESH = 1, 1, 0
    plain = listing.look_into

    def look(path: str, endings: tuple[str, ...]) -> listing.Folder:
        with open(log, "a") as file:
            file.write(f"{path}\n")
        if fails and path.endswith("bee"):
            raise OSError(5, "Input/output error")
        return plain(path, endings)

    listing.look_into = look
    source = open_images(place)
    assert source.names[:2] == NAMES[:2]
    with open(log, "a") as file:
        file.write(f"{os.stat(source.names.text.file.descriptor).st_ino}\n")


def run_ranks(
    place: Path, log: Path, fails: tuple[bool, ...]
) -> tuple[list[int | None], list[str]]:
    fork = multiprocessing.get_context("fork")
    jobs = [fork.Process(target=_list_slowly, args=(str(place), str(log), bad)) for bad in fails]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(120)
    return [job.exitcode for job in jobs], log.read_text().splitlines()


def test_ranks_that_start_together_list_once_and_map_one_file(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "data")
    codes, lines = run_ranks(place, tmp_path / "log", (False,) * 4)
    assert codes == [0] * 4
    assert lines.count(str(place / "ant")) == lines.count(str(place / "bee")) == 1
    inodes = [line for line in lines if line.isdecimal()]
    assert len(inodes) == 4
    assert len(set(inodes)) == 1


def test_no_rank_waits_for_one_that_failed(tmp_path: Path) -> None:
    place = make_folder(tmp_path / "data")
    codes, lines = run_ranks(place, tmp_path / "log", (True,) * 3)
    assert codes == [1] * 3  # each says why by itself, as if it were alone
    assert lines.count(str(place / "bee")) == 3
    codes, _ = run_ranks(place, tmp_path / "log", (False, False))
    assert codes == [0, 0]
