"""Nobody trains on test images by mistake, and classes of other names are no splits."""

from pathlib import Path

import pytest

from dino.data.sources import open_images, open_training_source
from dino.data.splits import find_mixed_splits
from dino.errors import DataError
from tests.data.test_shards import picture, write_tar


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train/1.png", "test/2.png"), ("train", "test")),
        (("Train/a/1.png", "Val/a/2.png"), ("Train", "Val")),
        (("training_set/1.png", "test_set/2.png"), ("training_set", "test_set")),
        (("train2017/1.png", "val2017/2.png"), ("train2017", "val2017")),
        (("TRAIN/1.png", "valid/images/2.png"), ("TRAIN", "valid")),
        (("images/train/1.png", "images/val/2.png"), ("images/train", "images/val")),
        (("bottle/test/x/1.png", "bottle/train/y/2.png"), ("bottle/train", "bottle/test")),
        (("train/1.png", "plane/2.png"), None),
        (("test/1.png", "plane/2.png"), None),
        (("trains/1.png", "tests/2.png"), None),
        (("a/train/1.png", "b/test/2.png"), None),
        (("1.png", "2.png"), None),
    ],
)
def test_folders_side_by_side_are_splits_by_their_names(
    names: tuple[str, ...], expected: tuple[str, str] | None
) -> None:
    assert find_mixed_splits(names) == expected


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture())
    return root


def test_training_on_mixed_splits_is_refused_and_a_list_is_the_way_out(tmp_path: Path) -> None:
    root = fill(tmp_path, "Train/1.png", "Test/2.png")
    with pytest.raises(
        DataError, match=r"holds the splits Train and Test; name `data_path` \S+/Train, or a text"
    ):
        open_training_source(str(root))
    assert open_training_source(str(root / "Train")).names == ("1.png",)
    (root / "all.txt").write_text("Train/1.png\nTest/2.png\n")
    assert len(open_training_source(str(root / "all.txt"))) == 2
    assert len(open_images(str(root))) == 2  # to look at them is no harm


def test_an_empty_split_is_not_mixed(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/1.png", "test/notes.txt")
    assert open_training_source(str(root)).names == ("train/1.png",)


def test_mixed_splits_within_the_train_split_or_a_shard_are_refused(tmp_path: Path) -> None:
    fill(tmp_path / "a", "train/train/1.png", "train/test/2.png", "val/3.png")
    write_tar(tmp_path / "b.tar", {"train/1.png": picture(), "val/2.png": picture()})
    for name in ("a", "b.tar"):
        with pytest.raises(DataError, match="holds the splits train and"):
            open_training_source(str(tmp_path / name))


@pytest.mark.parametrize(("train", "other"), [("train", "val"), ("Train", "Test")])
def test_classes_are_those_inside_the_splits(tmp_path: Path, train: str, other: str) -> None:
    fill(tmp_path, f"{train}/ant/1.png", f"{other}/ant/2.png", f"{other}/bee/3.png")
    source = open_images(str(tmp_path))
    labels = {
        name.rpartition("/")[2]: label
        for name, label in zip(source.names, source.labels or (), strict=True)
    }
    assert (source.classes, labels) == (("ant", "bee"), {"1.png": 0, "2.png": 0, "3.png": 1})
