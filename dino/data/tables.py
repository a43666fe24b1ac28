"""Images in Parquet files as the Hugging Face Hub keeps them, and in folders of `save_to_disk`.

Each image has an index, as in a folder. Splits, labels and class names are those of the Hugging
Face library `datasets`: they come from the files' names, the columns and their metadata.
"""

from __future__ import annotations

import glob
import importlib.util
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from dino.data.image_source import ImageSource
from dino.data.listing import Passed, add, list_folder
from dino.data.splits import ALL, TRAIN, VALIDATION, choose_split, find_validation, read_split
from dino.data.table_images import read_tables
from dino.data.table_rows import ARROW, PARQUET
from dino.errors import DataError
from dino.files import read_bounded

ENDINGS = (PARQUET, ARROW)
STATE, SAVED_SPLITS = "state.json", "dataset_dict.json"  # what `save_to_disk` writes
LARGEST_STATE = 2**20  # bytes
CACHED = "cache-"  # files that `datasets` computed and keeps beside
UNUSED = "unused tables"
INSTALL = "pip install 'dino-reference[parquet]'"

Place = tuple[Path, str]  # a folder, file or pattern, and the split of the tables there


def is_table(path: Path) -> bool:
    """Whether a path is that of a table, or a pattern of tables."""
    return path.suffix.lower() in ENDINGS and not path.is_dir()


def find_split(root: Path, split: str) -> Place | None:
    """Where TRAIN or VALIDATION is: a folder of that name, or some of the tables in `root`.

    Raises:
        DataError: There are tables of several data sets.
    """
    folder = root / TRAIN if split == TRAIN else find_validation(root)
    if folder is not None and folder.is_dir():
        return folder, ALL
    return (root, split) if choose_split(find_splits(root), split) else None


def find_beside(root: Path, train: ImageSource) -> Place | None:
    """Where the validation images are that belong to the training images of `root`.

    Raises:
        DataError: There are tables of several data sets.
    """
    folder = find_validation(train.root.parent)
    if folder is not None and not train.members:
        return folder, ALL
    if is_table(root):
        root = root.parent / f"*{root.suffix}"
    elif (root / STATE).exists() and (root.parent / SAVED_SPLITS).exists():
        root = root.parent
    if choose_split(find_splits(root), VALIDATION):
        return root, VALIDATION
    return None if folder is None else (folder, ALL)


def open_tables(root: Path, split: str = ALL, *, labelled: bool = False) -> ImageSource:
    """Open the tables that a file, folder or pattern names.

    Args:
        root: The file, folder or pattern.
        split: TRAIN for all tables if none is said to be for training; VALIDATION for those of the
            test split if there is no other; ALL for those of all splits.
        labelled: Whether each image must have a label.

    Raises:
        DataError: A table is missing or damaged or has no images, there are several data sets, or
            pyarrow is missing.
    """
    if importlib.util.find_spec("pyarrow") is None:
        raise DataError(f"{root} needs pyarrow to be read", remedy=INSTALL)
    splits = find_splits(root)
    chosen = choose_split(splits, split)
    if split != VALIDATION and not chosen:
        chosen = sorted(path for found in splits.values() for path in found)
    if not chosen:
        raise DataError(
            f"`data_path` {root} {'holds no table' if root.exists() else 'does not exist'}",
            remedy=f"name {' or '.join(ENDINGS)} files: one, a folder, or a pattern in quotes",
        )
    return read_tables(chosen, _pass_over(root, chosen), labelled=labelled)


def find_splits(root: Path) -> dict[str, list[Path]]:
    """Find the tables of each split, in order; ALL is for those that name none.

    Raises:
        DataError: Those of a split are of several data sets.
    """
    if root.is_dir():
        places = [(name, root / name) for name in _list_folder(root)]
    else:
        named = [str(root)] if root.exists() else sorted(glob.glob(str(root)))
        paths = [Path(path) for path in named if is_table(Path(path))]
        places = [(path.name, path) for path in paths]
    splits: dict[str, list[Path]] = {}
    for name, path in places:
        splits.setdefault(read_split(name), []).append(path)
    for found in splits.values():
        kinds = sorted({f"{path.parent}/*{path.suffix}" for path in found})
        if len(kinds) > 1:
            raise DataError(
                f"{root} holds tables of several data sets ({', '.join(kinds[:5])})",
                remedy="name one of them",
            )
    return splits


def name_tables(splits: Mapping[str, list[Path]]) -> str:
    """How to name the tables of one split on a command line: of TRAIN if there is one."""
    paths = splits.get(TRAIN) or next(iter(splits.values()))
    if len(paths) == 1:
        return str(paths[0])
    return f"'{os.path.commonprefix([str(path) for path in paths])}*{paths[0].suffix}'"


def _list_folder(root: Path) -> Iterator[str]:
    """Yield the tables below a folder; of a folder that was saved, those of its last state."""
    names = list_folder(root, ENDINGS).names
    for folder, group in itertools.groupby(names, os.path.dirname):
        inside = [os.path.basename(name) for name in group]
        for name in _read_state(root / folder / STATE, inside):
            yield os.path.join(folder, name)


def _read_state(state: Path, names: Sequence[str]) -> Sequence[str]:
    if not state.exists():
        return [name for name in names if not name.startswith(CACHED)]
    try:
        listed = json.loads(read_bounded(state, LARGEST_STATE))["_data_files"]
        current = [str(file["filename"]) for file in listed]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise DataError(f"{state} is damaged: {error}", remedy="save the data set again") from error
    missing = sorted(set(current) - set(names))
    if missing:
        raise DataError(f"{state} names {missing[0]}, which is missing", remedy="copy it again")
    return current


def _pass_over(root: Path, chosen: Sequence[Path]) -> Passed:
    """What else a folder holds."""
    if not root.is_dir():
        return {}
    listing, used = list_folder(root, ENDINGS), set(chosen)
    for name in listing.names:
        if root / name not in used:
            add(listing.passed, UNUSED, name)
    return listing.passed
