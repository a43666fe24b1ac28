"""Writers of feature files: numpy archives, safetensors, parquet and CSV.

Every writer takes a path, the images and the float32 arrays with one row per image. The arrays may
be larger than memory. Shapes: N images.
"""

from __future__ import annotations

import csv
import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dino.data.image_source import ImageSource

Arrays = Mapping[str, np.ndarray]
PARQUET_BYTES = 2**27  # of one row group


def write_npz(path: Path, source: ImageSource, arrays: Arrays) -> None:
    """Write a numpy archive without pickle: `names`, `classes`, known `labels` and the arrays."""
    content: dict[str, Any] = {
        "names": np.array(list(source.names)),
        "classes": np.array(source.classes, dtype=np.str_),
    }
    if source.labels is not None:
        content["labels"] = np.array(source.labels, dtype=np.int64)
    np.savez(path, **content | dict(arrays))


def write_safetensors(path: Path, source: ImageSource, arrays: Arrays) -> None:
    """Write safetensors: arrays and `labels`, with names and classes as JSON lists in the metadata.

    The library needs all arrays in memory, so the format is written here: a length of 8 bytes, a
    JSON header and the raw arrays.
    """
    tensors = (
        dict(arrays)
        if source.labels is None
        else {**arrays, "labels": np.array(source.labels, dtype=np.int64)}
    )
    header: dict[str, object] = {
        "__metadata__": {
            "names": json.dumps(list(source.names)),
            "classes": json.dumps(source.classes),
        }
    }
    start = 0
    for name, array in tensors.items():
        dtype, stop = ("F32" if array.dtype == np.float32 else "I64"), start + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        for array in tensors.values():
            array.tofile(file)


def write_csv(path: Path, source: ImageSource, arrays: Arrays) -> None:
    """Write one line per image: name, label and class if known, then `ARRAY_0`, `ARRAY_1`, ..."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        columns = [
            f"{name}_{column}" for name, array in arrays.items() for column in range(array.shape[1])
        ]
        lines.writerow(["name", *(() if source.labels is None else ("label", "class")), *columns])
        for index, name in enumerate(source.names):
            label_and_class: tuple[int | str, ...] = ()
            if source.labels is not None:
                label = source.labels[index]
                label_and_class = (label, source.classes[label])
            # numpy writes a float32 with enough digits to restore it exactly.
            numbers = (number for array in arrays.values() for number in array[index])
            lines.writerow([name, *label_and_class, *numbers])


def write_parquet(path: Path, source: ImageSource, arrays: Arrays) -> None:
    """Write parquet: name, label and class if known, and one list column per array.

    Patch grids are flattened row by row. The metadata of a column holds the shape of one image's
    values, as JSON under `shape`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    labelled = source.labels is not None
    fields = [
        ("name", pa.string()),
        *([("label", pa.int64()), ("class", pa.string())] if labelled else []),
    ]
    lists = [
        pa.field(
            name,
            pa.list_(pa.float32(), math.prod(a.shape[1:])),
            metadata={"shape": json.dumps(a.shape[1:])},
        )
        for name, a in arrays.items()
    ]
    schema = pa.schema([*(pa.field(*field) for field in fields), *lists])
    rows = max(1, PARQUET_BYTES // sum(array[0].nbytes for array in arrays.values()))
    with pq.ParquetWriter(path, schema) as file:
        for start in range(0, len(source), rows):
            group = slice(start, start + rows)
            columns = [pa.array(source.names[group])]
            if source.labels is not None:
                labels = source.labels[group]
                columns += [
                    pa.array(labels, pa.int64()),
                    pa.array([source.classes[label] for label in labels]),
                ]
            for name, array in arrays.items():
                flat = pa.array(np.asarray(array[group]).ravel())
                columns.append(
                    pa.FixedSizeListArray.from_arrays(flat, type=schema.field(name).type)
                )
            file.write_table(pa.table(columns, schema=schema))


WRITERS: dict[str, Callable[[Path, ImageSource, Arrays], None]] = {
    ".npz": write_npz,
    ".safetensors": write_safetensors,
    ".parquet": write_parquet,
    ".csv": write_csv,
}
