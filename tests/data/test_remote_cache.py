"""The cache returns what was written or nothing, and stays within its limit."""

import errno
import os
import time
from pathlib import Path

import numpy as np
import pytest

from dino.data import remote_cache
from dino.data.remote_cache import ImageCache, read_limit
from dino.errors import DataError

STAMP, OTHER = (10**6, 1, 0), (10**6, 2, 0)
CONTENT = bytes(range(256)) * 4


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(remote_cache, "SPARE", 0.0)  # the disk of the tests may be nearly full
    return tmp_path / "images"


def test_what_is_written_is_read_by_every_process(folder: Path) -> None:
    cache = ImageCache(10**9)
    cache.write("a.tar", STAMP, 512, CONTENT)
    cache.write("a.tar", STAMP, 2048, CONTENT[:1])
    other = ImageCache(10**9)
    assert other.read("a.tar", STAMP, 512, 1024) == CONTENT
    assert other.read("a.tar", STAMP, 2048, 1) == CONTENT[:1]
    assert len(list(folder.iterdir())) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


def test_another_shard_place_size_or_version_is_not_there() -> None:
    cache = ImageCache(10**9)
    cache.write("a.tar", STAMP, 512, CONTENT)
    for asked in (("b.tar", STAMP, 512, 1024), ("a.tar", OTHER, 512, 1024)):
        assert cache.read(*asked) is None
    for offset, size in ((1024, 512), (512, 1023), (512, 1025), (10**6, 5)):
        assert cache.read("a.tar", STAMP, offset, size) is None


@pytest.mark.parametrize("damage", ["every byte", "cut", "half", "empty"])
def test_damage_is_not_returned(damage: str, folder: Path) -> None:
    cache = ImageCache(10**9)
    cache.write("a.tar", STAMP, 512, CONTENT)
    [path] = folder.iterdir()
    whole = path.read_bytes()
    start = 512 - len(remote_cache.MARK) - remote_cache.DIGEST
    damaged = {"cut": [whole[:-1]], "empty": [b""], "half": [whole[:1000] + bytes(536)]}.get(
        damage,
        [whole[:n] + bytes([whole[n] ^ 1]) + whole[n + 1 :] for n in range(start, len(whole), 9)],
    )
    for content in damaged:
        path.write_bytes(content)
        assert cache.read("a.tar", STAMP, 512, 1024) is None
    cache.write("a.tar", STAMP, 512, CONTENT)
    assert cache.read("a.tar", STAMP, 512, 1024) == CONTENT


def fill(cache: ImageCache, name: str, count: int) -> None:
    noise = np.random.default_rng(0).bytes(10**5)
    for number in range(count):
        cache.write(name, STAMP, 512 + 200_192 * number, noise)


def measure(folder: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in folder.iterdir())


def test_a_full_cache_keeps_what_is_in_use_and_its_limit(folder: Path) -> None:
    cache = ImageCache(2 * 10**6)
    fill(cache, "a.tar", 40)
    assert 10**6 < measure(folder) <= 2 * 10**6
    assert cache.read("a.tar", STAMP, 512, 10**5) is not None
    assert cache.read("a.tar", STAMP, 512 + 200_192 * 39, 10**5) is None


def test_what_nobody_uses_makes_room_the_oldest_first(folder: Path) -> None:
    for age, name in enumerate(("new.tar", "old.tar"), start=2):
        fill(ImageCache(2 * 10**6), name, 8)
        path = ImageCache(1)._path(name, STAMP)
        os.utime(path, (0, time.time() - age * remote_cache.IDLE))
    fill(ImageCache(2 * 10**6), "a.tar", 8)
    left = ImageCache(2 * 10**6)
    assert left.read("old.tar", STAMP, 512, 10**5) is None
    assert left.read("new.tar", STAMP, 512, 10**5) is not None
    assert left.read("a.tar", STAMP, 512, 10**5) is not None
    assert ImageCache(1)._path("new.tar", STAMP).stat().st_mtime > time.time() - 60  # in use again


def test_a_full_disk_and_a_foreign_folder_turn_it_off_and_say_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    cache = ImageCache(10**9)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        for _ in range(3):
            cache.write("a.tar", STAMP, 512, CONTENT)
    assert caplog.text.count("No space left on device") == 1
    folder.chmod(0o777)
    cache = ImageCache(10**9)
    cache.write("a.tar", STAMP, 512, CONTENT)
    assert cache.read("a.tar", STAMP, 512, 1024) is None
    assert "writable by others" in caplog.text


def test_the_spare_part_of_a_disk_is_left(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_cache, "SPARE", 1.0)
    cache = ImageCache(10**9)
    cache.write("a.tar", STAMP, 512, CONTENT)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "size"), [("", 20 * 10**9), ("500G", 5 * 10**11), ("1.5T", 15 * 10**11), ("0", 0)]
)
def test_the_limit_is_a_size(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_CACHE_LIMIT", text)
    assert read_limit() == size


@pytest.mark.parametrize("text", ["50", "-1G", "lots", "5 GB"])
def test_what_is_no_size_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_CACHE_LIMIT", text)
    with pytest.raises(DataError, match=f"a size such as 500G, or 0 .got {text}."):
        read_limit()
