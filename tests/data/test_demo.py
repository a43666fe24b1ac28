"""The embedded data set: same bytes for same words, whole or absent, and no class that pixels give
away."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torchvision.datasets import ImageFolder

from dino.data import demo
from dino.data.demo import CLASSES, DemoSpec, build_demo, draw_image
from dino.errors import DataError

TINY = DemoSpec(image_size=8, train_per_class=2, val_per_class=1)


def read_files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))
    }


def test_an_image_depends_on_its_arguments_alone() -> None:
    image = draw_image(3, 7, "train", spec=DemoSpec())
    np.random.default_rng(0).random()
    counts = DemoSpec(train_per_class=9, val_per_class=9)
    assert (image == draw_image(3, 7, "train", spec=counts)).all()
    others = [
        draw_image(4, 7, "train", spec=DemoSpec()),
        draw_image(3, 8, "train", spec=DemoSpec()),
        draw_image(3, 7, "val", spec=DemoSpec()),
        draw_image(3, 7, "train", spec=DemoSpec(seed=1)),
    ]
    assert all((image != other).any() for other in others)


@given(
    label=st.integers(0, len(CLASSES) - 1),
    index=st.integers(0, 10**6),
    size=st.integers(1, 70),
    seed=st.integers(0, 2**63),
)
@settings(max_examples=60)
def test_any_class_size_and_seed_gives_an_image(
    label: int, index: int, size: int, seed: int
) -> None:
    image = draw_image(label, index, "val", spec=DemoSpec(image_size=size, seed=seed))
    assert image.dtype == np.uint8
    assert image.shape == (size, size, 3)
    if size >= 16:
        assert image.std() > 4, "an image without contrast shows nothing"


@pytest.mark.parametrize(
    ("label", "index", "split"), [(10, 0, "val"), (-1, 0, "val"), (0, -1, "val"), (0, 0, "test")]
)
def test_an_image_that_cannot_be_meant_is_refused(label: int, index: int, split: str) -> None:
    with pytest.raises(ValueError, match=f"label {label}, index {index} and split '{split}'"):
        draw_image(label, index, split, spec=TINY)


@pytest.mark.parametrize(
    ("name", "value"),
    [("image_size", 0), ("train_per_class", 0), ("val_per_class", -1), ("seed", -1)],
)
def test_a_specification_out_of_bounds_is_refused(name: str, value: int) -> None:
    with pytest.raises(DataError, match=rf"{name} must be >= \d \(got {value}\)"):
        replace(DemoSpec(), **{name: value})


@given(
    size=st.integers(1, 9), train=st.integers(1, 3), val=st.integers(1, 2), seed=st.integers(0, 99)
)
@settings(max_examples=6)
def test_the_folder_is_a_balanced_image_folder(size: int, train: int, val: int, seed: int) -> None:
    spec = DemoSpec(image_size=size, train_per_class=train, val_per_class=val, seed=seed)
    with tempfile.TemporaryDirectory() as root:
        folder = build_demo(spec, Path(root))
        for split, count in (("train", train), ("val", val)):
            data = ImageFolder(str(folder / split))
            assert tuple(data.classes) == CLASSES
            assert np.bincount(data.targets).tolist() == [count] * len(CLASSES)
            assert data[0][0].size == (size, size)


def test_the_files_hold_the_drawn_images(tmp_path: Path) -> None:
    folder = build_demo(TINY, tmp_path)
    with Image.open(folder / "train" / CLASSES[4] / "00001.png") as image:
        assert (np.asarray(image) == draw_image(4, 1, "train", spec=TINY)).all()


def test_the_seed_decides_every_byte(tmp_path: Path) -> None:
    first = read_files(build_demo(TINY, tmp_path / "first"))
    assert first == read_files(build_demo(TINY, tmp_path / "second"))
    other = read_files(build_demo(replace(TINY, seed=1), tmp_path / "first"))
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first)


def test_specifications_do_not_share_a_folder() -> None:
    specs = [
        DemoSpec(),
        DemoSpec(image_size=32),
        DemoSpec(train_per_class=1),
        DemoSpec(val_per_class=1),
        DemoSpec(seed=1),
    ]
    assert len({spec.folder_name for spec in specs}) == len(specs)


def test_it_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = build_demo(TINY, tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(demo, "draw_image", None)
    assert build_demo(TINY, tmp_path) == folder
    assert stamps == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_failure_midway_leaves_nothing_and_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_the_disk(label: int, index: int, split: str, *, spec: DemoSpec) -> NDArray[np.uint8]:
        if split == "val":
            raise OSError(28, "No space left on device")
        return draw_image(label, index, split, spec=spec)

    with (
        monkeypatch.context() as patch,
        pytest.raises(DataError, match="No space left on device") as caught,
    ):
        patch.setattr(demo, "draw_image", fill_the_disk)
        build_demo(TINY, tmp_path)
    assert "DINO_CACHE_DIR" in str(caught.value)
    assert str(tmp_path / TINY.folder_name) in str(caught.value)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    assert len(read_files(build_demo(TINY, tmp_path))) == 3 * len(CLASSES)


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path) -> None:
    stale = tmp_path / f"{TINY.folder_name}.partial" / "train" / CLASSES[0]
    stale.mkdir(parents=True)
    (stale / "99999.png").write_bytes(b"half an image")
    folder = build_demo(TINY, tmp_path)
    assert len(read_files(folder)) == 3 * len(CLASSES)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [folder.name]


def test_processes_at_once_build_it_once(tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from dino.data import demo
drawn, draw = [], demo.draw_image
demo.draw_image = lambda *args, **kwargs: drawn.append(1) or draw(*args, **kwargs)
spec = demo.DemoSpec(image_size=32, train_per_class=10, val_per_class=2)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([str(demo.build_demo(spec, Path(sys.argv[1]))), len(drawn)]))
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(demo.__file__).parents[2])}
    jobs = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        for _ in range(2)
    ]
    # Both have imported everything before either may start.
    assert [job.stdout.readline() for job in jobs if job.stdout] == ["ready\n", "ready\n"]
    for job in jobs:
        assert job.stdin is not None
        job.stdin.write("\n")
        job.stdin.flush()
    results = [json.loads(job.communicate(timeout=60)[0]) for job in jobs]
    assert results[0][0] == results[1][0]
    assert sorted(drawn for _, drawn in results) == [0, 12 * len(CLASSES)]
    assert len(read_files(Path(results[0][0]))) == 12 * len(CLASSES)


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "shared"))
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path / "own"))
    spec = DemoSpec(image_size=2, train_per_class=1, val_per_class=1)
    assert build_demo(spec) == tmp_path / "own" / spec.folder_name
    monkeypatch.delenv("DINO_CACHE_DIR")
    assert build_demo(spec) == tmp_path / "shared" / "dino" / spec.folder_name
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert build_demo(spec) == tmp_path / "home" / ".cache" / "dino" / spec.folder_name


@pytest.mark.parametrize("root", ["file", "file/below"])
def test_an_unwritable_folder_is_one_clear_line(root: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="set DINO_CACHE_DIR") as caught:
        build_demo(TINY, tmp_path / root)
    assert str(tmp_path / root) in str(caught.value)
    assert "\n" not in str(caught.value)


def draw_split(split: str, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Flattened pixels, float (10 count, D), and labels, int (10 count,)."""
    labels = np.repeat(np.arange(len(CLASSES)), count)
    images = [
        draw_image(label, index, split, spec=DemoSpec())
        for label in range(len(CLASSES))
        for index in range(count)
    ]
    return np.stack(images).reshape(len(images), -1).astype(np.float32), labels


def classify_by_neighbors(
    train: NDArray[np.float32], labels: NDArray[np.int64], rows: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Majority among the 20 rows of train, float (N, D), of smallest angle: (M, D) -> labels, int
    (M,)."""
    train, rows = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (train, rows))
    nearest = labels[np.argsort(-(rows @ train.T), axis=1)[:, :20]]
    return np.stack(
        [(nearest == label).sum(axis=1) for label in range(len(CLASSES))], axis=1
    ).argmax(axis=1)


def test_raw_pixels_hardly_tell_the_classes() -> None:
    train, train_labels = draw_split("train", 100)
    val, val_labels = draw_split("val", 30)
    for offset in (np.zeros_like(train[0]), train.mean(axis=0)):
        predicted = classify_by_neighbors(train - offset, train_labels, val - offset)
        assert (predicted == val_labels).mean() <= 0.3
