"""Folders that divide images into classes, and into those to train on and others."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")
VALIDATION_FOLDERS = ("val", "validation")
TRAIN, VALIDATION, TEST, ALL = "train", "validation", "test", ""
# The words by which the Hub knows splits, between other signs in the names of files and folders.
SPLITS = {
    TRAIN: {"train", "training"},
    VALIDATION: {"validation", "valid", "val", "dev"},
    TEST: {"test", "testing", "eval", "evaluation"},
}
# train2017, Test, training_set, val-images; the first group is empty for all but training.
SPLIT = re.compile(
    r"(?:(train|training)|(?:test|testing|val|valid|validation|dev|eval))"
    r"(?:[-_ ]?(?:set|split|data|images|\d+))?",
    re.IGNORECASE,
)


def find_validation(root: Path) -> Path | None:
    """The folder of the validation images, if there is one."""
    return next((root / name for name in VALIDATION_FOLDERS if os.path.isdir(root / name)), None)


def holds_splits(root: Path) -> bool:
    """Whether a folder is divided into the splits train and val (or validation)."""
    return os.path.isdir(root / "train") and find_validation(root) is not None


def is_divided(folders: Iterable[str]) -> bool:
    """Whether folders side by side are splits, among them one for training and another."""
    kinds = {bool(split[1]) for split in map(SPLIT.fullmatch, folders) if split}
    return len(kinds) == 2


def find_mixed_splits(names: Iterable[str]) -> tuple[str, str] | None:
    """Two folders side by side, one for training and one for other use, that both hold images."""
    folders: set[str] = set()
    for name in names:
        folder = name.rpartition(os.sep)[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition(os.sep)[0]
    training: dict[str, str] = {}
    other: dict[str, str] = {}
    for folder in sorted(folders):
        above, _, name = folder.rpartition(os.sep)
        split = SPLIT.fullmatch(name)
        if split:
            (training if split[1] else other).setdefault(above, folder)
    both = next((above for above in training if above in other), None)
    return None if both is None else (training[both], other[both])


def label_by_folder(
    names: Sequence[str], level: int = 0
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Labels and classes from the folders `level` levels down; None if an image is in none."""
    folders = [_class_folder(name, level) for name in names]
    if not all(folders):
        return None, ()
    classes = tuple(sorted(set(folders)))
    index = {name: number for number, name in enumerate(classes)}
    return tuple(index[folder] for folder in folders), classes


def _class_folder(name: str, level: int) -> str:
    parts = name.split(os.sep, level + 1)
    return parts[level] if len(parts) > level + 1 else ""


def read_split(name: str) -> str:
    """The split that a file's name tells, or else that of the nearest folder."""
    for part in reversed(name.split(os.sep)):
        words = set(re.split(r"[^a-z]+", part.lower()))
        split = next((split for split, known in SPLITS.items() if words & known), None)
        if split:
            return split
    return ALL


def choose_split(splits: Mapping[str, list[Item]], split: str) -> list[Item]:
    """The items of a split; those of the test split validate if there are no others."""
    return splits.get(split) or (splits.get(TEST, []) if split == VALIDATION else [])
