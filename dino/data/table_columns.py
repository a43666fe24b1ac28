"""Which columns of a table hold images and labels, and what the labels mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.data.decode import is_picture
from dino.data.image_source import number_classes
from dino.data.row_groups import Leaf
from dino.data.table_rows import Columns, read_first, read_schema
from dino.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

IMAGE, LABEL = "image", "label"  # the columns' usual names
BYTES, PATH = "bytes", "path"  # fields of an image in Hugging Face's form
BINARY, TEXT = {"binary", "large_binary"}, {"string", "large_string"}  # types
COLUMNS_SHOWN = 12


def choose_columns(path: Path) -> tuple[Columns, tuple[str, ...]]:
    """The columns to read of a table, and the names of its classes if it has such names.

    Images are in `image`, else in the only column that may hold some; labels in `label`, else in
    the only column of classes.

    Raises:
        DataError: No column may hold images, or several may.
    """
    schema = read_schema(path)
    classes = _read_classes(schema)
    able = [field.name for field in schema if _may_hold_images(path, field)]
    image = IMAGE if IMAGE in able else able[0] if len(able) == 1 else None
    if image is None:
        columns = ", ".join(
            f"{field.name} ({field.type})" for field in list(schema)[:COLUMNS_SHOWN]
        )
        raise DataError(
            f"{len(able) or 'none'} of its columns may hold images: {columns}",
            remedy=f"rename the one to read to {IMAGE}",
        )
    label = LABEL if LABEL in schema.names else next(iter(classes)) if len(classes) == 1 else None
    content, where = _find_leaves(image, schema.field(image).type)
    return Columns(content, where, (label,) if label else None), classes.get(label or "", ())


def _read_classes(schema: pa.Schema) -> dict[str, tuple[str, ...]]:
    """Names of the classes of each column of classes, from the metadata of `datasets`."""
    match json.loads((schema.metadata or {}).get(b"huggingface", b"{}")):
        case {"info": {"features": dict(features)}}:
            return {
                column: tuple(map(str, feature["names"]))
                for column, feature in features.items()
                if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
            }
    return {}


def _find_leaves(name: str, kind: pa.DataType) -> tuple[Leaf | None, Leaf | None]:
    """Where a column has encoded images and where paths; (None, None) if it has neither."""
    fields = {kind.field(n).name: str(kind.field(n).type) for n in range(kind.num_fields)}
    if fields.get(BYTES) in BINARY:
        return (name, BYTES), (name, PATH) if fields.get(PATH) in TEXT else None
    return (name,) if str(kind) in BINARY else None, (name,) if str(kind) in TEXT else None


def _may_hold_images(path: Path, field: pa.Field) -> bool:
    """Whether a column has encoded images, or strings of which the first names one."""
    content, where = _find_leaves(field.name, field.type)
    if content is None and where is not None:
        return is_picture(str(read_first(path, where)))
    return content is not None


def number_labels(
    values: Sequence[Any], known: tuple[str, ...]
) -> tuple[tuple[int, ...] | None, tuple[str, ...]]:
    """Class numbers and names; None and () unless each image has a class.

    Args:
        values: Labels as stored: numbers, of which the Hub's -1 stands for none, or names.
        known: Names of the classes by number, if the table has them.

    Raises:
        DataError: A number is beyond the names.
    """
    if values and all(isinstance(value, str) for value in values):
        classes = tuple(sorted(set(values)))
        numbers = {name: number for number, name in enumerate(classes)}
        return tuple(numbers[value] for value in values), classes
    if not values or not all(isinstance(value, int) and value >= 0 for value in values):
        return None, ()
    if known and max(values) >= len(known):
        raise DataError(f"a label is {max(values)}, and there are names of {len(known)} classes")
    return tuple(map(int, values)), known or number_classes(values)


def explain_unlabelled(path: Path, label: Leaf | None) -> DataError:
    """Why there are no labels."""
    if label is None:
        return DataError(
            f"{path} has no column {LABEL}", remedy="rename the column of classes to it"
        )
    return DataError(
        f"{path}: the column {label[0]} does not give each image a class",
        remedy="it must hold a name, or a number from 0, in every row; -1 stands for none",
    )
