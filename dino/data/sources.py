"""Where images come from: a folder with or without class folders, tar shards, a list of files, or `demo`."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dino.data.decode import EXTENSIONS, Box, read_image, read_size
from dino.data.demo import build_demo
from dino.data.index import list_files
from dino.data.list_files import read_list
from dino.data.shards import ENDING, Member, Members, find_shards, is_pattern, list_members
from dino.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor

VALIDATION = ("val", "validation")
FLAG = "`data_path`"
ASK = "name a folder of images, tar shards, a text file that lists images, or `data_path` demo to try without any"


@dataclass(frozen=True, kw_only=True)
class ImageSource:
    """A list of images, each in a file of its own or a member of a shard.

    Attributes:
        root: Folder that `names` are relative to, or that the shards lie in.
        names: File names, in the order of the data set's indices.
        labels: Class index of each name, or None where there are no class folders.
        classes: Class names, sorted.
        boxes: The part of each picture that is meant, in pixels of the stored picture, or None where all of it is.
        members: Where the images lie in shards, or None where they are files.
    """

    root: Path
    names: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    boxes: tuple[Box | None, ...] | None = None
    members: Members | None = field(default=None, compare=False)

    def __len__(self) -> int:
        """Number of images N."""
        return len(self.names)

    def path(self, index: int) -> Path:
        """Path of image `index`, if it is a file."""
        return self.root / self.names[index]

    def file(self, index: int) -> Path | Member:
        """What `read_image` reads for image `index`."""
        return self.members.member(index, self.names[index]) if self.members else self.path(index)

    def read(self, index: int, channels: int, *, whole: bool = False) -> Tensor:
        """Image `index`, or the part of it that is meant, as (C, H, W) uint8.

        Args:
            index: Of the image.
            channels: C.
            whole: Read all of it, whatever part is meant.

        Raises:
            DataError: It cannot be read as an image of so many channels.
        """
        return read_image(self.file(index), channels, None if whole else self.box(index))

    def read_labelled(self, index: int, channels: int) -> tuple[Tensor, int]:
        """Image `index`, as `read` gives it, and its label, -1 where it has none.

        Raises:
            DataError: It cannot be read as an image of so many channels.
        """
        return self.read(index, channels), -1 if self.labels is None else self.labels[index]

    def box(self, index: int) -> Box | None:
        """The part of image `index` that is meant."""
        return self.boxes[index] if self.boxes else None

    def read_size(self, index: int) -> tuple[int, int]:
        """(H, W) of picture `index`, or of its box, from the file's header.

        Raises:
            DataError: The file is missing or no picture, or the box lies outside of it.
        """
        return read_size(self.file(index), self.box(index))

    def fingerprint(self) -> str:
        """A digest of the names, equal for equal data wherever it is mounted."""
        return hashlib.sha256("\n".join(self.names).encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def limited(self, limit: int | None) -> ImageSource:
        """At most `limit` images, evenly spaced, so that every class folder keeps its share."""
        if limit is None or limit >= len(self):
            return self
        return self.selected([index * len(self) // limit for index in range(limit)])

    def selected(self, indices: Sequence[int]) -> ImageSource:
        """The images of these indices, in their order."""
        labels = None if self.labels is None else tuple(self.labels[index] for index in indices)
        boxes = None if self.boxes is None else tuple(self.boxes[index] for index in indices)
        names = tuple(self.names[index] for index in indices)
        members = self.members and self.members.selected(indices)
        return replace(self, names=names, labels=labels, boxes=boxes, members=members)


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
            f"`data_path` {root} needs the folder val (or validation), with class folders in it", value=root
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


def open_online_splits(data_path: str | None, limit: int | None = None) -> tuple[ImageSource, ImageSource]:
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
        raise DataError(f"{flag} {path} does not exist: name a folder of images or a text file that lists them")
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
    return source.root / stray if source.labels is None and stray and any(os.sep in n for n in source.names) else None


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


def _label_by_folder(names: tuple[str, ...], level: int) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
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
            f"{root} needs one folder a class", remedy=f"{find_stray(source) or source.path(0)} lies in none"
        )
    if like is not None and source.classes != like.classes:
        odd = sorted(set(source.classes) ^ set(like.classes))
        raise DataError(
            f"{root} and {like.root} do not have the same classes", remedy=f"in only one of them: {', '.join(odd[:5])}"
        )
    return source
