"""What is written is what other libraries read, to the bit."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from dino.data.image_source import ImageSource
from dino.evaluation.export import formats
from dino.evaluation.export.formats import (
    Arrays,
    write_csv,
    write_npz,
    write_parquet,
    write_safetensors,
)

NAMES = ("ant/a.png", 'bee/b, "c".png', "bee/ü.png")
LABELLED = ImageSource(root=Path("x"), names=NAMES, labels=(0, 1, 1), classes=("ant", "bee"))
PLAIN = ImageSource(root=Path("x"), names=NAMES)
ARRAYS = {
    "features": np.random.RandomState(0).standard_normal((3, 4)).astype(np.float32),
    "patches": np.random.RandomState(1).standard_normal((3, 2, 5, 4)).astype(np.float32),
}
Found = tuple[list[str], list[int] | None, dict[str, np.ndarray]]


def read_npz(path: Path) -> Found:
    with np.load(path, allow_pickle=False) as file:
        content = dict(file)
    labels = content.pop("labels").tolist() if "labels" in content else None
    assert content.pop("classes").tolist() == (["ant", "bee"] if labels else [])
    return content.pop("names").tolist(), labels, content


def read_safetensors(path: Path) -> Found:
    with safe_open(path, "numpy") as file:
        content = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
        names, classes = (json.loads(file.metadata()[name]) for name in ("names", "classes"))
    labels = content.pop("labels").tolist() if "labels" in content else None
    assert classes == (["ant", "bee"] if labels else [])
    return names, labels, content


def read_parquet(path: Path) -> Found:
    table = pyarrow.parquet.read_table(path)
    columns = table.to_pydict()
    shapes = {
        field.name: json.loads(field.metadata[b"shape"]) for field in table.schema if field.metadata
    }
    arrays = {
        name: np.array(columns[name], np.float32).reshape(-1, *shape)
        for name, shape in shapes.items()
    }
    if "label" in columns:
        assert [LABELLED.classes[label] for label in columns["label"]] == columns["class"]
    return columns["name"], columns.get("label"), arrays


@pytest.mark.parametrize("source", [LABELLED, PLAIN], ids=["labelled", "plain"])
@pytest.mark.parametrize(
    ("write", "read"),
    [(write_npz, read_npz), (write_safetensors, read_safetensors), (write_parquet, read_parquet)],
    ids=["npz", "safetensors", "parquet"],
)
@pytest.mark.parametrize("group", [1, 10**6])
def test_arrays_names_and_labels_come_back(
    write: Callable[[Path, ImageSource, Arrays], None],
    read: Callable[[Path], Found],
    source: ImageSource,
    group: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(formats, "PARQUET_BYTES", group)
    path = tmp_path / f"features.{write.__name__.removeprefix('write_')}"
    write(path, source, ARRAYS)
    names, labels, arrays = read(path)
    assert names == list(NAMES)
    assert labels == (None if source.labels is None else list(source.labels))
    assert arrays.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert arrays[name].dtype == np.float32
        assert np.array_equal(arrays[name], array)


@given(numbers=st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2))
@settings(max_examples=50)
def test_lines_of_text_give_the_same_float32_back(
    numbers: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("csv") / "features.csv"
    array = np.array([numbers, numbers[::-1], [0.1, 1e-30]], dtype=np.float32)
    for source in (LABELLED, PLAIN):
        write_csv(path, source, {"features": array})
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        assert [line["name"] for line in lines] == list(NAMES)
        read = [[line["features_0"], line["features_1"]] for line in lines]
        assert np.array_equal(np.array(read).astype(np.float32), array)
        if source.labels is not None:
            assert [(line["label"], line["class"]) for line in lines] == [
                ("0", "ant"),
                ("1", "bee"),
                ("1", "bee"),
            ]
