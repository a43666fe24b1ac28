"""Tables as Hugging Face `datasets` writes them, for tests that do not need the library itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dino.data.decode import read_file
from dino.data.image_source import ImageSource

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def make_table(
    images: Sequence[dict[str, Any] | None],
    labels: Sequence[Any] | None = None,
    classes: Sequence[str] = (),
) -> pa.Table:
    """Images {"bytes": ..., "path": ...} and labels, with the metadata of `datasets`."""
    columns, features = {"image": pa.array(images, IMAGE)}, {"image": {"_type": "Image"}}
    if labels is not None:
        columns["label"] = pa.array(labels)
    if classes:
        features["label"] = {"names": [*classes], "_type": "ClassLabel"}
    info = json.dumps({"info": {"features": features}})
    return pa.table(columns).replace_schema_metadata({"huggingface": info})


def write_parquet(
    folder: Path, source: ImageSource, split: str = "train", *, files: int = 2, rows: int = 3
) -> Path:
    """Write a source's images as the Hub keeps them: `files` files with groups of `rows` images."""
    images = [
        {"bytes": read_file(source.file(index)), "path": Path(name).name}
        for index, name in enumerate(source.names)
    ]
    table = make_table(images, source.labels, source.classes)
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(table) // files)
    for number in range(files):
        path = folder / f"{split}-{number:05}-of-{files:05}.parquet"
        pq.write_table(table.slice(number * size, size), path, row_group_size=rows)
    return folder
