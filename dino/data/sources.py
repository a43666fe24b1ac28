"""Where images come from: a folder with or without class folders, tar shards, a list of files, or `demo`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dino.data.decode import EXTENSIONS
from dino.data.demo import build_demo
from dino.data.image_source import ImageSource
from dino.data.index import list_files
from dino.data.image_list import read_list
from dino.data.shards import ENDING, find_shards, is_pattern, list_members
from dino.errors import DataError

VALIDATION = ("val", "validation")
FLAG = "`data_path`"
ASK = "name a folder of images, tar shards, a text file that lists images, or `data_path` demo to try without any"


def open_training_source(data_path: str | None, limit: int | None = None) -> ImageSource:
    """List the images to train on; of a folder that holds train and val splits, the train split.

    Raises:
        DataError: No path, a path that does not exist, or no image in it.
    """
    root = _existing(data_path)
    if root.is_dir() and holds_splits(root):
        root = root / "train"
    return _open(root).limited(limit)


def open_labelled_splits(data_path: str | None) -> tuple[ImageSource, ImageSource]:
    """List the train and the validation images of a folder that holds both, each with class folders.

    Raises:
        DataError: A split is missing, has no class folders, or the two do not have the same classes.
    """
    root = _existing(data_path)
    folder = _validation_folder(root)
    if folder is None or not holds_splits(root):
        raise DataError(
            f"`data_path` {root} needs the folders train and val (or validation), with class folders in each",
            value=root,
        )
    train = _labelled(root / "train")
    return train, _labelled(folder, like=train)


def open_validation_images(data_path: str | None) -> ImageSource:
    """List the validation images of a folder, for which no train images need to be there.

    Raises:
        DataError: The folder is missing, or has no class folders.
    """
    root = _existing(data_path)
    folder = _validation_folder(root)
    if folder is None:
        raise DataError(
            f"`data_path` {root} needs the folder val (or validation), with class folders in it",
            value=root,
        )
    return _labelled(folder)


def open_images(data_path: str | None) -> ImageSource:
    """List every image there is: below a folder, whatever splits it holds, in shards, or in a text file.

    Of a folder with train and val splits the labels are those of the class folders in the splits, not the splits.

    Raises:
        DataError: No path, a path that does not exist, or no image in it.
    """
    root = _existing(data_path)
    return _open(root, level=1 if root.is_dir() and holds_splits(root) else 0)


def open_online_splits(
    data_path: str | None, limit: int | None = None
) -> tuple[ImageSource, ImageSource]:
    """List the training images and the validation images that stand beside them, for the k-NN score during training.

    Raises:
        DataError: The images have no class folders, or no val (or validation) folder stands beside them.
    """
    train = open_training_source(data_path, limit)
    folder = _validation_folder(train.root.parent)
    if train.labels is None or folder is None:
        raise DataError(
            f"`eval_knn_every` needs class folders in {train.root} and a folder val (or validation) beside it"
        )
    return train, _labelled(folder, like=train)


def list_images(path: Path, flag: str) -> ImageSource:
    """List the images of a folder, however deep they lie in it, or of a text file that names them.

    Args:
        path: The folder or file.
        flag: Which flag it came from, for error texts.

    Raises:
        DataError: It does not exist, cannot be read, or holds no image.
    """
    if not path.exists():
        raise DataError(
            f"{flag} {path} does not exist: name a folder of images or a text file that lists them"
        )
    return _list(path, flag)


def find_images(path: str, flag: str) -> tuple[Path, ...]:
    """A file itself, or every image of a folder and of the folders in it, sorted.

    Args:
        path: File or folder.
        flag: Which flag named it, for the error.

    Raises:
        DataError: There is no such path, or no image in it.
    """
    root = Path(path)
    if root.is_file():
        return (root,)
    if not root.exists():
        raise DataError(f"{flag} {path} does not exist: name images or folders of images")
    source = _list(root, flag)
    return tuple(source.path(index) for index in range(len(source)))


def find_stray(source: ImageSource) -> Path | None:
    """The image that keeps class folders from being labels: the first in no folder, where others are in one."""
    stray = next((name for name in source.names if os.sep not in name), None)
    return (
        source.root / stray
        if source.labels is None and stray and any(os.sep in n for n in source.names)
        else None
    )


def _existing(data_path: str | None) -> Path:
    if not data_path:
        raise DataError(f"`data_path` is missing: {ASK}")
    if data_path == "demo":
        return build_demo()
    if not os.path.exists(data_path) and not is_pattern(data_path):
        raise DataError(f"`data_path` {data_path} does not exist: {ASK}", value=data_path)
    return Path(data_path)


def _validation_folder(root: Path) -> Path | None:
    return next((root / name for name in VALIDATION if (root / name).is_dir()), None)


def holds_splits(root: Path) -> bool:
    """Whether a folder's images are those of its folders train and val (or validation)."""
    return (root / "train").is_dir() and _validation_folder(root) is not None


def _open(root: Path, level: int = 0) -> ImageSource:
    """The images that `data_path` means: those of shards, of a folder of shards, or files."""
    if is_pattern(str(root)) and not root.is_dir():
        return _list_shards(find_shards(str(root), FLAG))
    source = _list_files(root, FLAG, level)
    shards = sorted(root.glob(f"*{ENDING}")) if root.is_dir() and not len(source) else []
    kinds = sorted({path.name.rstrip(f"{ENDING}0123456789") for path in shards})
    if len(kinds) > 1:
        raise DataError(
            f"{FLAG} {root} holds shards of several sets ({', '.join(kinds[:5])})",
            remedy=f"name one's, as {root}/*.tar",
        )
    return _list_shards(shards) if shards else _not_empty(source, root, FLAG)


def _list(root: Path, flag: str) -> ImageSource:
    return _not_empty(_list_files(root, flag, 0), root, flag)


def _not_empty(source: ImageSource, root: Path, flag: str) -> ImageSource:
    if not len(source):
        raise DataError(f"{flag} {root} holds no image (looked for {' '.join(EXTENSIONS)})")
    return source


def _list_files(root: Path, flag: str, level: int) -> ImageSource:
    if root.is_file():
        return ImageSource(root=root.parent, names=read_list(root, flag))
    try:
        names = tuple(list_files(root, EXTENSIONS))
    except OSError as error:
        raise DataError(f"{flag} {root} cannot be read: {error}") from error
    labels, classes = _label_by_folder(names, level)
    return ImageSource(root=root, names=names, labels=labels, classes=classes)


def _list_shards(shards: Sequence[Path]) -> ImageSource:
    """Classes are folders in the members' names or, where .cls members say otherwise, the numbers in those."""
    images, members = list_members(shards)
    names = tuple(image.name for image in images)
    labels, classes = _label_by_folder(names, 0)
    numbers = tuple(image.label for image in images if image.label is not None)
    if len(numbers) == len(names) and numbers != labels:
        labels, classes = numbers, tuple(map(str, range(max(numbers) + 1)))
    root = Path(os.path.commonpath([path.absolute().parent for path in shards]))
    return ImageSource(root=root, names=names, labels=labels, classes=classes, members=members)


def _label_by_folder(
    names: tuple[str, ...], level: int
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Labels and classes of images whose classes are the folders `level` levels down; None where one has no folder."""
    folders = [_class_folder(name, level) for name in names]
    if not all(folders):
        return None, ()
    classes = tuple(sorted(set(folders)))
    index = {name: number for number, name in enumerate(classes)}
    return tuple(index[folder] for folder in folders), classes


def _class_folder(name: str, level: int) -> str:
    parts = name.split(os.sep, level + 1)
    return parts[level] if len(parts) > level + 1 else ""


def _labelled(root: Path, like: ImageSource | None = None) -> ImageSource:
    source = _open(root)
    if source.labels is None:
        raise DataError(
            f"{root} needs one folder a class",
            remedy=f"{find_stray(source) or source.path(0)} lies in none",
        )
    if like is not None and source.classes != like.classes:
        odd = sorted(set(source.classes) ^ set(like.classes))
        raise DataError(
            f"{root} and {like.root} do not have the same classes",
            remedy=f"in only one of them: {', '.join(odd[:5])}",
        )
    return source
