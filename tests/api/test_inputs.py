"""Pairs of train and val images: labels, and classes that agree."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import Subset

from dino.api.inputs import open_source, open_splits
from dino.errors import DataError
from tests.api.tiny import Pictures, write_pictures


def test_labels_of_items_and_of_targets_are_found() -> None:
    named = Pictures(label=lambda index: index % 2)
    train, val = open_splits((named, Subset(named, [3, 4, 5])))
    assert train.labels == (0, 1) * 6 and val.labels == (1, 0, 1)
    assert train.classes == val.classes == ("0", "1")
    named.targets, named.classes = [1] * 12, ["ant", "bee"]
    train, val = open_splits([named, Subset(named, [0])])
    assert train.labels == (1,) * 12  # not those of the items, which are not read for it
    assert train.classes == val.classes == ("ant", "bee")


def test_a_folder_and_a_data_set_make_a_pair(splits: Path) -> None:
    train, val = open_splits((splits / "train", Pictures(label=lambda index: index % 2)))
    assert train.classes == val.classes == ("ant", "bee")


def test_pairs_that_do_not_fit_are_refused(splits: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "bee", 1)
    named = Pictures(label=lambda _: 0)
    for data, text in (
        ((splits / "train", tmp_path), "must have the same classes; they differ in ant"),
        ((named, Pictures()), "Pictures has no labels; give class folders, or items"),
        ((named, tmp_path / "bee"), "bee has no labels"),
        ((named,), r"a pair \(train, val\) \(got tuple\)"),
        (named, r"a pair \(train, val\) \(got Pictures\)"),
        (splits / "train", "needs the folders train and val"),
    ):
        with pytest.raises(DataError, match=text):
            open_splits(data)


def test_a_folder_with_a_pictures_name_is_a_folder(tmp_path: Path) -> None:
    assert open_source(write_pictures(tmp_path / "odd.png", 2)).names == ("000.png", "001.png")


def test_a_tilde_is_the_home_folder(splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(splits))
    assert open_source("~/val").names == open_source(splits / "val").names
    assert [len(part) for part in open_splits("~")] == [len(part) for part in open_splits(splits)]
