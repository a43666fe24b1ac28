"""Shards behind URLs are the shards on a disk, whatever their server does, or one line says why
not."""

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from dino.cli.pack import main as pack
from dino.data import remote, remote_cache, remote_requests, shard_sources
from dino.data.crops import CropRecipe, Crops
from dino.data.datasets import CropDataset, Share
from dino.data.decode import read_image
from dino.data.image_source import ImageSource
from dino.data.loaders import build_train_loader
from dino.data.packing import Packing, pack_images
from dino.data.remote_requests import Unreachable
from dino.data.sources import (
    open_images,
    open_labelled_splits,
    open_online_splits,
    open_training_source,
    open_validation_images,
)
from dino.errors import DataError, OptionError
from tests.range_server import RangeServer, serve

RECIPE = CropRecipe(global_size=16, local_size=8, local_views=2)
SHARDS = "train-{000000..000002}.tar"


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 images of noise in two classes, in three shards."""
    root, rng = tmp_path_factory.mktemp("images") / "train", np.random.default_rng(0)
    for number in range(13):
        path = root / ("ant", "bee")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    out = tmp_path_factory.mktemp("packed")
    assert len(list(pack_images(open_training_source(str(root)), out, Packing(5), workers=2))) == 3
    return out


@pytest.fixture
def server(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path / "cache"))
    remote._ahead.cache_clear()  # the folder of another test
    monkeypatch.setattr(remote_requests, "PAUSE", 0.0)
    monkeypatch.setattr(remote_cache, "SPARE", 0.0)  # the disk of the tests may be nearly full
    with serve(packed) as running:
        yield running


def assert_same_images(one: ImageSource, two: ImageSource) -> None:
    assert (one.names, one.labels, one.classes) == (two.names, two.labels, two.classes)
    for index in range(len(one)):
        assert torch.equal(read_image(one.file(index)), read_image(two.file(index)))


def test_a_url_is_the_shards_on_a_disk(packed: Path, server: RangeServer) -> None:
    local = open_training_source(str(packed / SHARDS))
    far = open_training_source(f"{server.url}/{SHARDS}")
    assert_same_images(far, local)
    assert far.fingerprint() == local.fingerprint()  # a run may move from one to the other
    assert far.describe() == (
        f"3 shards, the first {server.url}/train-000000.tar, 13 images in 2 classes"
    )
    assert str(far.root) == server.url and far.root.name == server.url.rpartition("/")[2]


@pytest.fixture
def both(packed: Path) -> Iterator[str]:
    """A pattern of two splits: a copy of one shard validates."""
    shutil.copy(packed / "train-000001.tar", packed / "val-000000.tar")
    yield "{train-{000000..000002},val-000000}.tar"
    (packed / "val-000000.tar").unlink()


def test_the_shards_of_both_splits_are_those_of_an_evaluation(
    both: str, packed: Path, tmp_path: Path, server: RangeServer
) -> None:
    folder = tmp_path / "sorted"
    for split, pattern in (("train", "train-*.tar"), ("val", "val-000000.tar")):
        (folder / split).mkdir(parents=True)
        for path in packed.glob(pattern):
            shutil.copy(path, folder / split)
    expected = open_labelled_splits(str(folder))
    for place in (f"{server.url}/{both}", str(packed / both)):
        for found, wanted in zip(open_labelled_splits(place), expected, strict=True):
            assert_same_images(found, wanted)
        assert_same_images(open_validation_images(place), expected[1])
        for found, wanted in zip(open_online_splits(place), expected, strict=True):
            assert_same_images(found, wanted)
        train = open_training_source(place)
        assert_same_images(train, expected[0])
        assert "passed over: 1 shards of other splits" in train.describe()
        assert len(open_images(place)) == 18


@pytest.mark.parametrize("names", ["train-{000000..000002}.tar", "{train-000000,train-000001}.tar"])
def test_an_evaluation_needs_shards_of_both_splits(
    names: str, packed: Path, server: RangeServer
) -> None:
    for place in (f"{server.url}/{names}", str(packed / names)):
        with pytest.raises(DataError, match=r"shards of one split, .*; name those of both"):
            open_labelled_splits(place)
        with pytest.raises(DataError, match=r"shards of one split"):
            open_validation_images(place)


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (("train-0.tar", "val-0.tar"), {"train": [0], "validation": [1]}),
        (("x/train/0.tar", "x/test/0.tar"), {"train": [0], "test": [1]}),
        (
            ("train-0.tar", "unlabeled-0.tar", "valid-1.tar"),
            {"train": [0], "": [1], "validation": [2]},
        ),
        # One word alone means nothing.
        (("train-0.tar", "unlabeled-0.tar"), {"": [0, 1]}),
        (("val-0.tar", "more-0.tar"), {"": [0, 1]}),
        (("train/birds-0.tar", "train/test-shots-0.tar"), {"": [0, 1]}),
        (("dev/a-0.tar", "dev/a-1.tar"), {"": [0, 1]}),
        (("https://dev.org/a-0.tar", "https://dev.org/train-1.tar"), {"": [0, 1]}),
        (("s3://train/a/0.tar", "s3://test/a/1.tar"), {"": [0, 1]}),
        (("s3://b/train/0.tar", "s3://b/val/0.tar"), {"train": [0], "validation": [1]}),
    ],
)
def test_shards_are_divided_where_their_names_tell_training_from_other_use(
    places: tuple[str, ...], expected: dict[str, list[int]]
) -> None:
    shards = [SimpleNamespace(place=place) for place in places]
    found = shard_sources.divide_shards(shards)
    assert {split: [shards.index(one) for one in them] for split, them in found.items()} == expected


def test_training_leaves_out_only_what_is_for_another_use(packed: Path, tmp_path: Path) -> None:
    for name in ("more-0.tar", "train-0.tar", "val-0.tar"):
        shutil.copy(packed / "train-000001.tar", tmp_path / name)
    pattern = str(tmp_path / "*.tar")
    assert len(open_training_source(pattern)) == 10
    assert [len(split) for split in open_labelled_splits(pattern)] == [5, 5]


def test_a_pattern_without_validation_shards_is_not_its_own_validation(packed: Path) -> None:
    with pytest.raises(DataError, match="`eval_knn_every` needs class folders"):
        open_online_splits(str(packed / SHARDS))


def test_shards_of_splits_are_not_packed_into_one_set(
    both: str, packed: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match="names the shards of splits; pack each split separately"):
        pack([str(packed / both), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_the_index_spares_the_second_run_all_headers(packed: Path, server: RangeServer) -> None:
    first = open_training_source(f"{server.url}/{SHARDS}")
    assert any(method == "GET" for method, _, _ in server.asked)
    server.asked.clear()
    assert open_training_source(f"{server.url}/{SHARDS}") == first
    assert {method for method, _, _ in server.asked} == {"HEAD"} and len(server.asked) == 3


def test_one_image_is_one_request_for_its_bytes(server: RangeServer) -> None:
    source = open_training_source(f"{server.url}/{SHARDS}")
    server.asked.clear()
    member = source.file(6)
    content = member.read()
    assert server.asked == [
        ("GET", "/train-000001.tar", f"bytes={member.offset}-{member.offset + len(content) - 1}")
    ]


def read_epoch(source: ImageSource, workers: int, start: int = 0, epoch: int = 1) -> list[Crops]:
    loader = build_train_loader(
        CropDataset(source, RECIPE, seed=5, skip_bad=False),
        batch_size=2,
        share=Share(),
        workers=workers,
        pin_memory=False,
    )
    return list(loader.read(epoch, start))


def assert_same_crops(one: list[Crops], two: list[Crops]) -> None:
    assert len(one) == len(two) > 0
    for left, right in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.mark.parametrize("cache", ["0", "1G"])
@pytest.mark.parametrize("workers", [0, 2])
def test_crops_are_those_of_the_shards_on_a_disk(
    workers: int, cache: str, packed: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINO_CACHE_LIMIT", cache)
    far = open_training_source(f"{server.url}/{SHARDS}")
    local = open_training_source(str(packed / SHARDS))
    server.asked.clear()
    server.faults += [503, "cut", "shift"]
    assert_same_crops(read_epoch(far, workers), read_epoch(local, 0))
    first = len(server.asked)
    assert_same_crops(read_epoch(far, workers, start=3), read_epoch(local, 0)[3:])
    assert (len(server.asked) == first) is (cache != "0")  # the same images, from the cache


def test_images_are_fetched_together_and_before_their_batch(server: RangeServer) -> None:
    far = open_training_source(f"{server.url}/{SHARDS}")
    dataset = CropDataset(far, RECIPE, seed=5, skip_bad=False)
    met, server.meeting = [], threading.Barrier(8, lambda: met.append(True))
    loader = build_train_loader(dataset, batch_size=2, share=Share(), workers=0, pin_memory=False)
    next(loader.read(0))
    assert met


@pytest.mark.parametrize("fault", [500, 503, 429, "cut", "shift", "stall"])
def test_a_fault_is_tried_again(
    fault: int | str, packed: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = open_training_source(f"{server.url}/{SHARDS}")
    if fault == "stall":
        monkeypatch.setattr(remote_requests, "PATIENCE", 0.2)
    server.faults += [fault] * 2
    local = open_training_source(str(packed / SHARDS))
    assert torch.equal(read_image(far.file(3)), read_image(local.file(3)))
    assert server.faults == []


@pytest.mark.parametrize(
    ("fault", "tries", "reason"),
    [
        (500, 8, r"HTTP 500 Internal Server Error \(8 tries in \d+ s\)"),
        ("cut", 8, r".*\(8 tries in \d+ s\)"),
        ("shift", 8, r"the server sent bytes \d+-\d+ instead of bytes \d+-\d+ \(8 tries"),
        (403, 1, "HTTP 403 Forbidden$"),
        (404, 1, "HTTP 404 Not Found$"),
        ("whole", 1, "the server sends whole files, not ranges of them$"),
    ],
)
def test_the_end_is_one_line(
    fault: int | str, tries: int, reason: str, server: RangeServer
) -> None:
    source = open_training_source(f"{server.url}/{SHARDS}")
    server.faults += [fault] * 20
    with pytest.raises(Unreachable, match=rf"train-000000\.tar cannot be read: {reason}") as caught:
        read_image(source.file(0))
    assert len(server.faults) == 20 - tries and "\n" not in str(caught.value)


def test_an_image_that_cannot_be_reached_is_not_replaced(server: RangeServer) -> None:
    source = open_training_source(f"{server.url}/{SHARDS}")
    server.faults.append(403)
    error = CropDataset(source, RECIPE, seed=5, skip_bad=True)[0, 4]
    assert isinstance(error, Unreachable) and "HTTP 403" in str(error)


def test_a_shard_that_changes_under_a_run_is_an_error(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path / "cache"))
    remote._ahead.cache_clear()
    shard = tmp_path / "a.tar"
    content = (packed / "train-000000.tar").read_bytes()
    shard.write_bytes(content)
    with serve(tmp_path) as server:
        source = open_training_source(f"{server.url}/a.tar")
        assert_same_images(source.selected([0]), open_images(str(shard)).selected([0]))
        shard.write_bytes(content[:3000] + bytes([content[3000] ^ 1]) + content[3001:])
        with pytest.raises(Unreachable, match=r"a\.tar has changed since the run began; restart"):
            read_image(source.file(4))
        assert_same_images(open_training_source(f"{server.url}/a.tar"), open_images(str(shard)))


def test_a_shard_that_is_missing_or_whose_server_is_down_is_named(server: RangeServer) -> None:
    url = f"{server.url}/train-{{000000..000003}}.tar"
    with pytest.raises(DataError, match=r"/train-000003\.tar cannot be read: HTTP 404 Not Found$"):
        open_training_source(url)
    with pytest.raises(DataError, match=r"^http://127\.0\.0\.1:1/a\.tar cannot be read: .*4 tries"):
        open_training_source("http://127.0.0.1:1/a.tar")


def test_a_wildcard_needs_a_server_that_lists(packed: Path, server: RangeServer) -> None:
    with pytest.raises(DataError, match=r"`data_path` .*/\*\.tar: .*name the shards with braces"):
        open_training_source(f"{server.url}/*.tar")
    server.lists = True
    assert_same_images(
        open_training_source(f"{server.url}/train-*.tar"), open_training_source(str(packed))
    )


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("s3://bucket/train", "a URL must name tar shards, such as s3://bucket/train-"),
        ("https://host/", "a URL must name tar shards"),
        ("odd://host/a.tar", "odd://host cannot be opened: Protocol not known: odd"),
        ("http://host/{a.tar", "braces must hold"),
        ("http://host/{a,a}.tar", "names the shard http://host/a.tar twice"),
        ("http://host/a.tar.gz", "is not an uncompressed .tar file"),
    ],
)
def test_what_is_not_supported_is_one_line(url: str, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        open_training_source(url)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, **_: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(
        DataError,
        match=r"s3://b1 cannot be opened: Install s3fs.*pip install s3fs \(the extra s3\)$",
    ):
        open_training_source("s3://b1/a.tar")


def test_names_and_signatures_in_a_url_are_not_printed(packed: Path, server: RangeServer) -> None:
    url = server.url.replace("://", "://user:word@")
    source = open_training_source(f"{url}/train-000000.tar?signature=1")
    assert all(part not in source.describe() for part in ("word", "signature"))
    assert server.asked[-1][1] == "/train-000000.tar?signature=1"


def test_any_file_system_of_fsspec_will_do(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DINO_CACHE_LIMIT", "0")
    remote._ahead.cache_clear()
    memory = fsspec.filesystem("memory")
    for shard in packed.glob("*.tar"):
        memory.pipe_file(f"/bucket/{shard.name}", shard.read_bytes())
    far = open_training_source("memory://bucket/train-*.tar")
    assert_same_images(far, open_training_source(str(packed)))
    memory.pipe_file("/bucket/train-000000.tar", bytes(10240))
    with pytest.raises(Unreachable, match=r"train-000000\.tar has changed"):
        read_image(far.file(0))


def test_its_threads_do_not_keep_a_process(
    packed: Path, server: RangeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, daemons = fsspec.filesystem("memory"), set()
    plain = type(memory).cat_file

    def cat_file(*words: object, **more: object) -> bytes:
        daemons.add(threading.current_thread().daemon)
        return plain(*words, **more)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    memory.pipe_file("/daemons/train-0.tar", (packed / "train-000000.tar").read_bytes())
    for url in ("memory://daemons/train-0.tar", f"{server.url}/{SHARDS}"):
        far = open_training_source(url)
        far.expect(range(len(far)))
        read_image(far.file(0))
    assert daemons == {True}
    assert {each.daemon for each in threading.enumerate() if each.name == "fsspecIO"} == {True}
