"""Tables are a folder in another form: the same images, labels, splits and crops, or one line that
says why not."""

import io
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dino.data import columns, row_groups, start_checks, table_rows, tables
from dino.data.crops import CropRecipe, Crops
from dino.data.datasets import CropDataset, Share
from dino.data.image_source import ImageSource
from dino.data.loaders import build_train_loader
from dino.data.sources import (
    open_images,
    open_labelled_splits,
    open_online_splits,
    open_training_source,
    open_validation_images,
)
from dino.errors import DataError
from tests.tables import make_table, write_parquet

COUNTS = {"train": 9, "test": 4}  # of each class
RECIPE = CropRecipe(global_size=16, local_size=8, local_views=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with images of noise in two class folders."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in COUNTS.items():
        for number in range(2 * count):
            path = root / split / ("ant", "bee")[number % 2] / f"{number:02}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture(scope="module")
def train(folder: Path) -> ImageSource:
    return open_training_source(str(folder / "train"))


@pytest.fixture(scope="module")
def written(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the real library writes: Parquet files with the images and with paths, a saved set."""
    root = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HOME", str(root / "cache"))
        patch.setenv("HF_HUB_OFFLINE", "1")
        import datasets

        splits = {name: _as_dataset(datasets, folder / name) for name in COUNTS}
        datasets.DatasetDict(splits).save_to_disk(
            root / "saved", num_shards={"train": 2, "test": 1}
        )
        for name, one in splits.items():
            paths = one.cast_column("image", datasets.Image(decode=False))
            inside = paths.map(lambda row: {"image": _embed(row["image"])})
            for kind, each in (("inside", inside), ("paths", paths)):
                (root / kind / "data").mkdir(parents=True, exist_ok=True)
                path = root / kind / "data" / f"{name}-00000-of-00001.parquet"
                each.cast_column("image", datasets.Image()).to_parquet(path)
    return {kind: root / kind for kind in ("saved", "inside", "paths")}


def _as_dataset(datasets, folder: Path):
    source = open_images(str(folder))
    columns = {
        "image": [str(source.path(index)) for index in range(len(source))],
        "label": source.labels,
    }
    classes = datasets.ClassLabel(names=[*source.classes])
    features = datasets.Features({"image": datasets.Image(), "label": classes})
    return datasets.Dataset.from_dict(columns, features=features)


def _embed(image: dict) -> dict:
    path = Path(image["path"])
    return {"bytes": path.read_bytes(), "path": path.name}


def assert_same_images(one: ImageSource, two: ImageSource) -> None:
    assert (len(one), one.labels, one.classes) == (len(two), two.labels, two.classes)
    for index in range(len(one)):
        assert torch.equal(one.read(index, 3), two.read(index, 3))


@pytest.mark.parametrize("kind", ["saved", "inside", "paths"])
def test_what_datasets_writes_is_the_folder(
    kind: str, written: dict[str, Path], folder: Path, train: ImageSource
) -> None:
    root = written[kind]
    assert_same_images(open_training_source(str(root)), train)
    test = open_images(str(folder / "test"))
    for pair in (open_labelled_splits(str(root)), open_online_splits(str(root))):
        assert_same_images(pair[0], train)
        assert_same_images(pair[1], test)
    assert_same_images(open_validation_images(str(root)), test)
    assert len(open_images(str(root))) == len(train) + len(test)
    if kind != "paths":  # a run may change from one form to the other
        found = open_training_source(str(root))
        assert (found.names, found.fingerprint()) == (train.names, train.fingerprint())


def test_a_run_says_which_tables_it_reads(written: dict[str, Path]) -> None:
    saved, inside = written["saved"] / "train", written["inside"]
    assert open_training_source(str(saved)).describe() == (
        f"2 Arrow files, the first {saved}/data-00000-of-00002.arrow, 18 images in 2 classes;"
        " passed over: 2 .json (dataset_info.json)"
    )
    assert open_training_source(str(inside)).describe() == (
        f"1 Parquet files, the first {inside}/data/train-00000-of-00001.parquet, 18 images in 2"
        " classes; passed over: 1 unused tables (data/test-00000-of-00001.parquet)"
    )


def test_saved_sets_leave_out_what_the_library_keeps_beside(
    written: dict[str, Path], train: ImageSource, tmp_path: Path
) -> None:
    saved = shutil.copytree(written["saved"] / "train", tmp_path / "saved")
    shutil.copy(saved / "data-00000-of-00002.arrow", saved / "cache-0123456789abcdef.arrow")
    assert_same_images(open_training_source(str(saved)), train)
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(DataError, match="names data-00001-of-00002.arrow, which is missing"):
        open_training_source(str(saved))
    (saved / tables.STATE).write_text("[]")
    with pytest.raises(DataError, match=r"state\.json is damaged: .*; save the data set again"):
        open_training_source(str(saved))


@pytest.fixture(scope="module")
def hub(train: ImageSource, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """data/ with two files of row groups of three images for train, and one for validation."""
    root = tmp_path_factory.mktemp("hub")
    write_parquet(root / "data", train)
    write_parquet(root / "data", open_images(str(folder / "test")), "validation", files=1)
    return root


@pytest.mark.parametrize(
    "name", ["", "data", "data/train-*.parquet", "data/train-0000[01]-of-00002.parquet"]
)
def test_a_split_is_named_by_folder_or_pattern(name: str, hub: Path, train: ImageSource) -> None:
    source = open_training_source(str(hub / name))
    assert_same_images(source, train)
    assert source.names == train.names and source.root == hub / "data"
    assert len(open_online_splits(str(hub / name))[1]) == 2 * COUNTS["test"]


def read(source: ImageSource, *, start: int = 0, workers: int = 0, **share: int) -> list[Crops]:
    dataset = CropDataset(source, RECIPE, seed=5, skip_bad=False)
    loader = build_train_loader(
        dataset,
        batch_size=6 // share.get("world_size", 1),
        share=Share(**share),
        workers=workers,
        pin_memory=False,
    )
    return list(loader.read(1, start))


def assert_equal(one: list[Crops], two: list[Crops]) -> None:
    assert len(one) == len(two) > 0
    for left, right in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_crops_are_those_of_the_folder(hub: Path, train: ImageSource) -> None:
    source, expected = open_training_source(str(hub)), read(train)
    assert_equal(read(source), expected)
    assert_equal(read(source, workers=2), expected)
    assert_equal(read(source, start=2), expected[2:])
    for rank in range(2):
        words = {"rank": rank, "world_size": 2}
        assert_equal(read(source, **words), read(train, **words))


def test_names_and_places_of_many_rows_are_held_once_a_host(
    hub: Path, train: ImageSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "LARGE", 4)
    source = open_training_source(str(hub))
    assert type(source.names) is columns.Names and (*source.names,) == (*train.names,)
    assert_equal(read(source, workers=1), read(train))


def encode(value: int, kind: str = "png") -> bytes:
    path = io.BytesIO()
    Image.new("RGB", (9, 8), (value, 0, 0)).save(path, kind)
    return path.getvalue()


def write(folder: Path, table: pa.Table, name: str = "a.parquet", **words: object) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    if path.suffix == ".parquet":
        pq.write_table(table, path, **words)
    else:
        writer = pa.ipc.new_file if words else pa.ipc.new_stream
        with pa.OSFile(str(path), "wb") as file, writer(file, table.schema, **words) as out:
            out.write_table(table, max_chunksize=2)
    return path


def reds(source: ImageSource) -> list[int]:
    return [int(source.read(index, 3)[0, 0, 0]) for index in range(len(source))]


BINARY = {
    kind: pa.array([encode(7), encode(8), encode(9)], kind())
    for kind in (pa.binary, pa.large_binary)
}


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
@pytest.mark.parametrize("kind", BINARY)
def test_a_binary_column_of_any_name_holds_images(
    kind: Callable, name: str, tmp_path: Path
) -> None:
    table = pa.table({"img": BINARY[kind], "text": ["x", "y", "z"], "score": [0.5, 1.0, 2.0]})
    source = open_images(str(write(tmp_path, table, name)))
    assert reds(source) == [7, 8, 9] and source.labels is None
    assert source.names == ("a-000000.png", "a-000001.png", "a-000002.png")
    sliced = open_images(str(write(tmp_path, table.slice(1), name)))
    assert reds(sliced) == [8, 9]


def test_images_in_the_format_of_arrow_files(tmp_path: Path) -> None:
    table = pa.table({"image": BINARY[pa.binary]})
    options = pa.ipc.IpcWriteOptions(use_legacy_format=False)
    assert reds(open_images(str(write(tmp_path, table, "a.arrow", options=options)))) == [7, 8, 9]
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    path = write(tmp_path, pa.table({"image": [encode(1) * 50] * 3}), "b.arrow", options=options)
    with pytest.raises(DataError, match=r"b\.arrow: its buffers are compressed; write it without"):
        open_images(str(path))


def test_paths_are_relative_to_their_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for value in (7, 8):
        (tmp_path / "images" / f"{value}.png").write_bytes(encode(value))
    table = pa.table({"file": ["images/8.png", None, "images/7.png"], "text": ["a", "b", "c"]})
    source = open_training_source(str(write(tmp_path, table)))
    assert reds(source) == [8, 7] and source.names == ("images/8.png", "images/7.png")
    assert source.describe().endswith("passed over: 1 rows without an image (a.parquet row 1)")
    table = pa.table({"image": ["images/8.png", "images/9.png"]})
    with pytest.raises(
        DataError, match=r"1 of 2 do not exist, the first is images/9\.png in row 1"
    ):
        open_images(str(write(tmp_path, table, "b.parquet")))


def labelled(
    folder: Path, labels: list[object], classes: tuple[str, ...] = (), **words: object
) -> ImageSource:
    images = [{"bytes": encode(value), "path": None} for value in range(len(labels))]
    table = make_table(images, labels, classes)
    return tables.open_tables(write(folder, table), **words)


@pytest.mark.parametrize(
    ("labels", "classes", "numbers", "names"),
    [
        ([1, 0, 1], ("tench", "great/white"), (1, 0, 1), ("tench", "great/white")),
        ([2, 0, 2], (), (2, 0, 2), ("0", "1", "2")),
        (["b", "a", "b"], (), (1, 0, 1), ("a", "b")),
        ([-1, -1, -1], ("a", "b"), None, ()),
        ([0, None, 1], ("a", "b"), None, ()),
        ([0.5, 1.0, 2.0], (), None, ()),
    ],
)
def test_labels_and_names_are_those_of_the_table(
    labels: list, classes: tuple, numbers: tuple | None, names: tuple, tmp_path: Path
) -> None:
    source = labelled(tmp_path, labels, classes)
    assert (source.labels, source.classes) == (numbers, names)
    if numbers is None:
        with pytest.raises(DataError, match="column label does not give each image a class; it mu"):
            labelled(tmp_path, labels, classes, labelled=True)


def test_names_are_those_of_a_folder_of_classes(tmp_path: Path) -> None:
    source = labelled(tmp_path, [1, 0, 2], ("tench", "great/white", ".hidden"))
    assert source.names == (
        "great_white/a-000000.png",
        "tench/a-000001.png",
        "2/a-000002.png",
    )


def test_labels_in_another_column_are_found_if_there_is_one(tmp_path: Path) -> None:
    table = make_table([{"bytes": encode(1), "path": "x.png"}] * 2, [0, 1], ("a", "b"))
    metadata = {"huggingface": table.schema.metadata[b"huggingface"].replace(b"label", b"fine")}
    table = table.rename_columns(["image", "fine"]).replace_schema_metadata(metadata)
    assert open_images(str(write(tmp_path, table))).classes == ("a", "b")
    with pytest.raises(DataError, match=r"a\.parquet has no column label; rename the column of cl"):
        tables.open_tables(write(tmp_path, table.replace_schema_metadata({})), labelled=True)
    with pytest.raises(DataError, match="a label is 1, and there are names of 1 classes"):
        labelled(tmp_path, [1, 1], ("a",))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_rows_without_an_image_are_counted_and_passed_over(name: str, tmp_path: Path) -> None:
    image = [{"bytes": encode(value), "path": f"{value}.png"} for value in range(6)]
    table = make_table([image[0], None, {"bytes": None, "path": "x.png"}, *image[3:]], range(6))
    source = open_images(str(write(tmp_path, table, name)))
    assert reds(source) == [0, 3, 4, 5] and source.labels == (0, 3, 4, 5)
    assert source.describe().endswith(f"passed over: 2 rows without an image ({name} row 1)")
    empty = make_table([None, {"bytes": None, "path": None}])
    with pytest.raises(DataError, match=f"{name} holds no image; all rows are empty"):
        open_images(str(write(tmp_path, empty, name)))


def test_a_row_that_statistics_do_not_know_to_be_empty_is_an_unreadable_image(
    tmp_path: Path,
) -> None:
    table = make_table([{"bytes": encode(1), "path": None}, None])
    source = open_images(str(write(tmp_path, table, write_statistics=False)))
    assert len(source) == 2
    with pytest.raises(DataError, match=r"a\.parquet/a-000001\.png holds no image"):
        source.read(1, 3)


def test_names_that_are_no_help_are_replaced_by_numbers(tmp_path: Path) -> None:
    for paths in (
        ["x.png", "x.png"],
        ["x.png", None],
        ["x.png", ".y.png"],
        ["x.txt", "y.png"],
        ["x\n.png", "y.png"],
    ):
        images = [{"bytes": encode(1, "jpeg"), "path": path} for path in paths]
        source = open_images(str(write(tmp_path, make_table(images), "v1.0.parquet")))
        assert source.names == ("v1_0-000000.jpeg", "v1_0-000001.jpeg")


TWO = pa.table({"left": [encode(1)], "right": [encode(2)]})
NO_IMAGE = pa.table({"text": ["a"], "label": [1], "pair": pa.array([{"x": 1}])})


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (
            TWO,
            r"2 of its columns may hold images: left \(binary\), right \(binary\); rename the one",
        ),
        (NO_IMAGE, r"none of its columns may hold images: text \(string\), label \(int64\), pair"),
        (NO_IMAGE.slice(1), "none of its columns may hold images"),
    ],
)
def test_which_column_holds_the_images_is_not_guessed(
    table: pa.Table, text: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=rf"a\.parquet: {text}"):
        open_images(str(write(tmp_path, table)))


def test_what_cannot_be_used_is_one_line(hub: Path, tmp_path: Path) -> None:
    whole = (hub / "data" / "train-00000-of-00002.parquet").read_bytes()
    for name, content, text in (
        ("short.parquet", whole[:-20], "short.parquet cannot be read: .*; download or write it ag"),
        ("text.parquet", b"version https://git-lfs", "text.parquet cannot be read: .*magic bytes"),
        ("empty.arrow", b"", "empty.arrow: its end is missing"),
        ("text.arrow", b"hello world " * 9, "text.arrow: its end is missing"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=text):
            open_training_source(str(tmp_path / name))
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(DataError, match=r"pipe\.parquet is no file"):
        open_training_source(str(tmp_path / "pipe.parquet"))
    with pytest.raises(DataError, match=r"b-\*\.parquet does not exist; name \.parquet or \.a"):
        open_training_source(str(tmp_path / "b-*.parquet"))


def test_tables_of_several_data_sets_are_refused(hub: Path, tmp_path: Path) -> None:
    for name in ("coarse", "fine"):
        shutil.copytree(hub / "data", tmp_path / name)
    with pytest.raises(DataError, match=r"several data sets \(.*coarse.*, .*fine.*\); name one of"):
        open_training_source(str(tmp_path))
    with pytest.raises(DataError, match="needs the folders train and val"):
        open_labelled_splits(str(tmp_path / "coarse" / "train-*.parquet"))


def test_files_of_other_columns_are_refused(hub: Path, tmp_path: Path) -> None:
    shutil.copytree(hub / "data", tmp_path / "data")
    write(tmp_path / "data", pa.table({"img": [encode(1)]}), "train-00001-of-00002.parquet")
    with pytest.raises(
        DataError, match="train-00001-of-00002.parquet: it has no column image.bytes; name"
    ):
        open_training_source(str(tmp_path))


def test_without_pyarrow_one_line_names_the_extra(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        DataError, match=r"needs pyarrow to be read; pip install 'dino-reference\[pa"
    ):
        open_training_source(str(hub))


def test_pictures_beside_tables_are_read_as_before(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encode(5))
    write(tmp_path, TWO, "metadata.parquet")
    source = open_training_source(str(tmp_path))
    assert source.names == ("x.png",) and list(source.passed) == [".parquet"]


def test_a_file_that_is_replaced_is_noticed_at_the_next_image(hub: Path, tmp_path: Path) -> None:
    root = shutil.copytree(hub / "data", tmp_path / "data")
    source = open_training_source(str(root))
    source.read(0, 3)
    path = root / "train-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes())
    with pytest.raises(DataError, match="has changed since the run began; restart the run"):
        source.read(1, 3)
    source.read(10, 3)


def test_a_process_keeps_few_row_groups(
    train: ImageSource, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_training_source(str(hub))
    monkeypatch.setattr(row_groups, "_groups", row_groups._Groups())
    kept = row_groups._groups.known
    source.read(0, 3)
    two_groups = int(2.5 * next(iter(kept.values())).nbytes)
    monkeypatch.setattr(row_groups, "KEPT", two_groups)
    for index in (0, 17, 6, 9, 3, 12, 3, 0):
        assert torch.equal(source.read(index, 3), train.read(index, 3))
        assert sum(one.nbytes for one in kept.values()) <= two_groups
    assert [key[3] for key in kept] == [1, 0]
    monkeypatch.setattr(row_groups, "KEPT", 0)
    source.read(5, 3)
    assert [key[3] for key in kept] == [1]


@pytest.mark.parametrize(
    ("module", "name", "text"),
    [
        (table_rows, "MOST_ROWS", "claims 9 rows, and 5 is the most"),
        (table_rows, "LARGEST_TEXT", r"image\.path takes more than 5 bytes"),
        (table_rows, "LARGEST_GROUP", "bytes of a row group, and 5 is the most"),
    ],
)
def test_memory_is_bounded(
    module: object, name: str, text: str, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, 5)
    with pytest.raises(DataError, match=rf"train-00000-of-00002\.parquet: .*{text}"):
        open_training_source(str(hub))


def test_equal_images_that_take_little_space_are_not_decoded_without_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_table([{"bytes": encode(1), "path": None}] * 1000)
    source = open_images(str(write(tmp_path, table)))
    monkeypatch.setattr(row_groups, "_groups", row_groups._Groups())
    monkeypatch.setattr(row_groups, "LARGEST_GROUP", 10_000)
    with pytest.raises(DataError, match=r"image\.bytes takes more than 10000 bytes"):
        source.read(0, 3)


def test_a_run_says_that_large_row_groups_are_slow(
    hub: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    read(open_training_source(str(hub)))
    assert "slow" not in caplog.text  # all of it can be kept
    monkeypatch.setattr("dino.data.table_images.KEPT", 100)
    monkeypatch.setattr(start_checks, "SLOW", 100)
    read(open_training_source(str(hub)))
    assert "0 MB of its Parquet file are decoded; pack the images once (dino pack)" in caplog.text


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_damage_is_an_error_or_an_unreadable_image(
    kind: str, hub: Path, train: ImageSource, tmp_path: Path
) -> None:
    whole = pq.read_table(hub / "data" / "train-00000-of-00002.parquet")
    path = write(tmp_path, whole, f"a.{kind}")
    content, rng, errors = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(40):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 3):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            source = open_images(str(path))
            for index in range(len(source)):
                source.read(index, 3)
        except DataError as error:
            errors += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert errors > 10
