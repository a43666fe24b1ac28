"""The kinds of feature files: numpy's archive, safetensors, parquet and CSV.

Every writer takes a path, the images and the arrays, float32 with one row an image each, which may be larger than
memory. Shapes: N images.
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
    """An archive of numpy: `names`, of class folders `labels` and `classes`, and the arrays; opens without pickle."""
    content: dict[str, Any] = {
        "names": np.array(source.names),
        "classes": np.array(source.classes, dtype=np.str_),
    }
    if source.labels is not None:
        content["labels"] = np.array(source.labels, dtype=np.int64)
    np.savez(path, **content | dict(arrays))


def write_safetensors(path: Path, source: ImageSource, arrays: Arrays) -> None:
    """The safetensors format: arrays and `labels`; names and classes as JSON lists in its metadata.

    Written here because the library wants all arrays in memory: a length of 8 bytes, a JSON header, the raw arrays.
    """
    tensors = (
        dict(arrays)
        if source.labels is None
        else {**arrays, "labels": np.array(source.labels, dtype=np.int64)}
    )
    header: dict[str, object] = {
        "__metadata__": {"names": json.dumps(source.names), "classes": json.dumps(source.classes)}
    }
    start = 0
    for name, array in tensors.items():
        kind, stop = ("F32" if array.dtype == np.float32 else "I64"), start + array.nbytes
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": (start, stop)}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.flush()
        for array in tensors.values():
            array.tofile(file)


def write_csv(path: Path, source: ImageSource, arrays: Arrays) -> None:
    """One line an image: name, of class folders label and class, then `ARRAY_0`, `ARRAY_1`, ..."""
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        numbers = [
            f"{name}_{place}" for name, array in arrays.items() for place in range(array.shape[1])
        ]
        lines.writerow(["name", *(() if source.labels is None else ("label", "class")), *numbers])
        for index, name in enumerate(source.names):
            own = (
                ()
                if source.labels is None
                else (source.labels[index], source.classes[source.labels[index]])
            )
            # numpy's float32 is written with as many digits as give it back exactly
            lines.writerow(
                [name, *own, *(number for array in arrays.values() for number in array[index])]
            )


def write_parquet(path: Path, source: ImageSource, arrays: Arrays) -> None:
    """Columns name, of class folders label and class, and one list a row for each array, patch grids row by row.

    The shape of an array's part of one image stands in its column's metadata, as JSON under `shape`.
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
            part = slice(start, start + rows)
            columns = [pa.array(source.names[part])]
            if source.labels is not None:
                own = source.labels[part]
                columns += [
                    pa.array(own, pa.int64()),
                    pa.array([source.classes[label] for label in own]),
                ]
            for name, array in arrays.items():
                flat = pa.array(np.asarray(array[part]).ravel())
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
