"""Where images come from: folders with or without classes, shards, tables, lists, or `demo`."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from dino.data.decode import EXTENSIONS
from dino.data.demo import build_demo
from dino.data.file_sources import list_files
from dino.data.image_source import ImageSource
from dino.data.listing import describe, list_folder, show
from dino.data.remote import UrlPath, check_url, is_url
from dino.data.shard_names import ENDING, is_pattern
from dino.data.shard_sources import holds_validation, open_local_shards, open_pattern
from dino.data.splits import (
    ALL,
    TRAIN,
    VALIDATION,
    find_mixed_splits,
    holds_splits,
    is_divided,
    label_by_folder,
)
from dino.data.tables import (
    ENDINGS,
    Place,
    find_beside,
    find_split,
    is_table,
    open_tables,
)
from dino.errors import DataError

URL = re.compile(r"[a-z][a-z0-9+.-]+:/|pipe:", re.IGNORECASE)
FLAG = "`data_path`"
ASK = (
    "name a folder of images, tar shards, Parquet files, a text file that lists images,"
    " or `data_path` demo to try it without your own"
)


def open_training_source(data_path: str | None, limit: int | None = None) -> ImageSource:
    """List the training images; in a folder with train and val splits, those of the train split.

    Raises:
        DataError: The path is not set, does not exist, has no images, or mixes splits.
    """
    root = _existing(data_path)
    if os.path.isdir(root) and holds_splits(root):
        root = root / "train"
    source = _open(root, TRAIN)
    if source.members or os.path.isdir(root):  # a list file names its images on purpose
        _refuse_mixed_splits(source)
    return source.limited(limit)


def open_labelled_splits(data_path: str | None) -> tuple[ImageSource, ImageSource]:
    """List the train and validation images of a folder that has both, each with its class.

    Raises:
        DataError: A split is missing or has no classes, or their classes differ.
    """
    root = _existing(data_path)
    train, other = _find_place(root, TRAIN), _find_place(root, VALIDATION)
    if train is None or other is None:
        raise DataError(
            f"`data_path` {root} needs the folders train and val (or validation),"
            " with class folders in each, or tables or shards of both",
            value=root,
        )
    labelled = _labelled(*train)
    return labelled, _labelled(*other, like=labelled)


def open_validation_images(data_path: str | None) -> ImageSource:
    """List the validation images of a folder; it does not need train images.

    Raises:
        DataError: The folder is missing or has no class folders.
    """
    root = _existing(data_path)
    split = _find_place(root, VALIDATION)
    if split is None:
        raise DataError(
            f"`data_path` {root} needs the folder val (or validation), with class folders in it,"
            " or a table of it",
            value=root,
        )
    return _labelled(*split)


def open_images(data_path: str | None) -> ImageSource:
    """List all images: of a folder including its splits, of shards, or of a text file.

    In a folder of splits, labels come from the class folders inside the splits.

    Raises:
        DataError: The path is not set, does not exist, or has no images.
    """
    root = _existing(data_path)
    source = _open(root)
    if source.labels is None or not is_divided(source.classes):
        return source
    labels, classes = label_by_folder(source.names, level=1)
    return replace(source, labels=labels, classes=classes).packed()


def open_online_splits(
    data_path: str | None, limit: int | None = None
) -> tuple[ImageSource, ImageSource]:
    """List the training images and the validation images next to them, for k-NN in training.

    Raises:
        DataError: The images have no class folders, or there is nothing to validate on beside them.
    """
    train = open_training_source(data_path, limit)
    root = _existing(data_path)
    split = _find_beside(root, train)
    if train.labels is None or split is None:
        raise DataError(
            f"`eval_knn_every` needs class folders in {train.root} and a folder val"
            " (or validation) next to it"
        )
    return train, _labelled(*split, like=train)


def list_images(path: Path, flag: str) -> ImageSource:
    """List the images of a folder and its sub-folders, or of a text file that names them.

    Args:
        path: The folder or file.
        flag: The flag to name in errors.

    Raises:
        DataError: It does not exist, cannot be read, or has no images.
    """
    if not os.path.exists(path):
        _check_local(str(path), flag)
        raise DataError(
            f"{flag} {show(str(path))} does not exist:"
            " name a folder of images or a text file that lists them"
        )
    return _list(path, flag)


def find_images(path: str, flag: str) -> tuple[Path, ...]:
    """The file itself, or all images of a folder and its sub-folders, sorted.

    Args:
        path: File or folder.
        flag: The flag to name in errors.

    Raises:
        DataError: The path does not exist or has no images.
    """
    root = Path(path)
    if os.path.isfile(path):
        return (root,)
    if not os.path.exists(path):
        _check_local(path, flag)
        raise DataError(f"{flag} {show(path)} does not exist: name images or folders of images")
    source = _list(root, flag)
    return tuple(source.path(index) for index in range(len(source)))


def find_stray(source: ImageSource) -> Path | None:
    """The first image outside any folder, if others are in folders and so cannot get labels."""
    stray = next((name for name in source.names if os.sep not in name), None)
    return (
        source.root / stray
        if source.labels is None and stray and any(os.sep in n for n in source.names)
        else None
    )


def _refuse_mixed_splits(source: ImageSource) -> None:
    mixed = find_mixed_splits(source.names)
    if mixed is None:
        return
    remedy = (
        "pack one of them alone"
        if source.members
        else f"name `data_path` {source.root / mixed[0]}, or a text file that lists the images of"
        " both"
    )
    raise DataError(f"{source.root} holds the splits {mixed[0]} and {mixed[1]}", remedy=remedy)


def _names_shards(root: Path) -> bool:
    """Whether a path or URL is a pattern of tar files."""
    pattern = is_pattern(str(root)) and not (os.path.isdir(root) or is_table(root))
    return pattern or isinstance(root, UrlPath)


def _find_beside(root: Path, train: ImageSource) -> Place | None:
    """Where the validation images are that belong to the training images of `root`, or None."""
    own = _names_shards(root) and holds_validation(root, FLAG)
    return (root, VALIDATION) if own else find_beside(root, train)


def _find_place(root: Path, split: str) -> Place | None:
    """Where a split is, or None; of shards, opening them tells."""
    return (root, split) if _names_shards(root) else find_split(root, split)


def _existing(data_path: str | None) -> Path:
    if not data_path:
        raise DataError(f"`data_path` is missing: {ASK}")
    if is_url(data_path):
        return check_url(data_path, FLAG)
    if data_path == "demo":
        _check_demo()
        return build_demo()
    if not os.path.exists(data_path):
        _check_local(data_path, FLAG)
        if not is_pattern(data_path) and not is_table(Path(data_path)):
            raise DataError(f"`data_path` {show(data_path)} does not exist: {ASK}", value=data_path)
    return Path(data_path)


def _check_demo() -> None:
    """Refuse to guess which images `demo` means."""
    own = Path("demo")
    if own.is_file() or (own.is_dir() and list_folder(own, (*EXTENSIONS, ENDING)).names):
        raise DataError(
            "`data_path` demo means the built-in images, and there are images in ./demo too",
            remedy="write ./demo for those, or start in another folder",
        )


def _check_local(path: str, flag: str) -> None:
    if URL.match(path):
        raise DataError(
            f"{flag} {show(path)} is no path on this machine",
            value=path,
            remedy="copy the images to a disk, or mount the store, and name the folder",
        )


def _open(root: Path, split: str = ALL, *, labelled: bool = False) -> ImageSource:
    """Open `data_path`: shards or tables by pattern, a list file, or a folder of any of them.

    Args:
        root: The path or pattern.
        split: Which of the splits to open, if there are tables or shards of several.
        labelled: Whether tables must have labels, and shards for training are said to be.
    """
    if is_table(root):
        return open_tables(root, split, labelled=labelled)
    if _names_shards(root):
        return open_pattern(root, FLAG, split, labelled=labelled)
    source = list_files(root, FLAG)
    shards = sorted(root.glob(f"[!.]*{ENDING}")) if os.path.isdir(root) else []
    if shards and len(source):
        raise DataError(
            f"{FLAG} {root} holds shards ({shards[0].name}) beside pictures ({source.names[0]})",
            remedy=f"name the shards, such as '{root}/*{ENDING}', or move them",
        )
    kinds = sorted({path.name.rstrip(f"{ENDING}0123456789") for path in shards})
    if len(kinds) > 1:
        raise DataError(
            f"{FLAG} {root} holds shards of several sets ({', '.join(kinds[:5])})",
            remedy=f"choose one of them, such as {root}/NAME-*{ENDING}",
        )
    if shards:
        return open_local_shards(shards)
    if not len(source) and not source.passed.keys().isdisjoint(ENDINGS):
        return open_tables(root, split, labelled=labelled)
    return _not_empty(source, root, FLAG)


def _list(root: Path, flag: str) -> ImageSource:
    return _not_empty(list_files(root, flag), root, flag)


def _not_empty(source: ImageSource, root: Path, flag: str) -> ImageSource:
    if not len(source):
        passed = f"; passed over: {describe(source.passed)}" if source.passed else ""
        raise DataError(f"{flag} {root} holds no image (looked for {' '.join(EXTENSIONS)}{passed})")
    return source


def _labelled(root: Path, split: str, like: ImageSource | None = None) -> ImageSource:
    source = _open(root, split, labelled=True)
    if source.labels is None:
        raise DataError(
            f"{root} needs one folder per class",
            remedy=f"{find_stray(source) or source.path(0)} is not in one",
        )
    if like is not None and source.classes != like.classes:
        odd = sorted(set(source.classes) ^ set(like.classes))
        raise DataError(
            f"{root} and {like.root} do not have the same classes",
            remedy=f"only one of them has {', '.join(odd[:5])}",
        )
    return source
