"""Ground truth is data and never code; views are Pillow's thumbnails, less what no patch sees."""

import functools
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from dino.errors import DataError
from dino.evaluation.retrieval.oxford_paris import (
    Landmarks,
    Thumbnail,
    compute_size,
    cut_to_patches,
    open_landmarks,
)
from dino.models.registry import build_backbone

NAME = "roxford5k"


def build_truth() -> dict[str, Any]:
    entries = [
        {"bbx": [1.4, 2.6, 30.0, 19.5], "easy": [0, 2], "hard": [1], "junk": []},
        {"bbx": [0, 0, 10, 10], "easy": [], "hard": np.array([3]), "junk": np.array([0, 1])},
    ]
    return {"gnd": entries, "imlist": ["a", "b", "c", "d"], "qimlist": ["q", "r"]}


def write_set(root: Path, content: object, *, protocol: int = 2, images: str = "abcdqr") -> str:
    folder = root / NAME
    (folder / "jpg").mkdir(parents=True, exist_ok=True)
    (folder / f"gnd_{NAME}.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    for image in images:
        (folder / "jpg" / f"{image}.jpg").touch()
    return str(root)


def open_set(root: str, *, crop_queries: bool = True) -> Landmarks:
    return open_landmarks(root, NAME, crop_queries=crop_queries)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    found = open_set(write_set(tmp_path, build_truth(), protocol=protocol))
    assert found.source.names == tuple(f"jpg/{name}.jpg" for name in "abcdqr")
    assert found.source.root == tmp_path / NAME
    assert found.source.boxes == (None, None, None, None, (1, 3, 30, 20), (0, 0, 10, 10))
    assert [[part.tolist() for part in truth] for truth in found.truths] == [
        [[0, 2], [1], []],
        [[], [3], [0, 1]],
    ]
    assert {part.dtype for truth in found.truths for part in truth} == {np.dtype(np.int64)}
    assert open_set(str(tmp_path), crop_queries=False).source.boxes is None


class Evil:
    """Runs a command when it is unpickled by someone careless."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("place", ["alone", "inside", "in an array"])
def test_a_pickle_runs_nothing(tmp_path: Path, protocol: int, place: str) -> None:
    proof = tmp_path / "proof"
    evil = Evil(os.system, f"touch {proof}")
    boxed = np.empty(1, dtype=object)
    boxed[0] = evil
    content = {
        "alone": evil,
        "inside": build_truth() | {"more": [evil]},
        "in an array": {"gnd": boxed},
    }[place]
    with pytest.raises(
        DataError, match=rf"gnd_{NAME}\.pkl cannot be read: it holds the pickled object (posix|nt)"
    ):
        open_set(write_set(tmp_path, content, protocol=protocol))
    assert not proof.exists()


@pytest.mark.parametrize(
    "call",
    [
        (eval, "1"),
        (getattr, [], "append"),
        (np.load, "x.npy"),
        (functools.partial, print),
        (np.memmap, "x"),
    ],
    ids=lambda call: call[0].__name__,
)
def test_only_arrays_are_built(tmp_path: Path, call: tuple[Any, ...]) -> None:
    with pytest.raises(DataError, match="only lists, numbers, texts and arrays are read"):
        open_set(write_set(tmp_path, Evil(*call)))


NESTED = (
    b")" + b"\x85" * 200_000
)  # tuples in a tuple: hashing or printing them overflows the C stack
LONG_NAME = b"X" + (100_000).to_bytes(4, "little") + b"x" * 100_000
HOSTILE = {
    "a deep tuple as a key": (
        b"\x80\x04}" + NESTED + b"K\x01s.",
        "cannot be read: it has a tuple of 100 values or more",
    ),
    "a deep value": (
        b"\x80\x04}X\3\0\0\0gnd" + NESTED + b"s.",
        "cannot be read: it nests more than 100 levels deep",
    ),
    "a long name 100,000 times": (
        b"\x80\x04}(X\6\0\0\0imlist](" + LONG_NAME + b"q\0" + b"h\0" * 100_000 + b"eu.",
        "imlist is not a list of image names",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_ends_in_one_line(tmp_path: Path, name: str) -> None:
    content, reason = HOSTILE[name]
    root = write_set(tmp_path, {})
    (tmp_path / NAME / f"gnd_{NAME}.pkl").write_bytes(content)
    with pytest.raises(DataError, match=rf"gnd_{NAME}\.pkl .*{reason}"):
        open_set(root)


def test_a_file_without_an_end_is_not_read(tmp_path: Path) -> None:
    root = write_set(tmp_path, {})
    path = tmp_path / NAME / f"gnd_{NAME}.pkl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # without content on disk
    with pytest.raises(DataError, match="cannot be read: it has more than 268435456 bytes"):
        open_set(root)


def test_a_long_text_among_indices_is_not_repeated_in_memory(tmp_path: Path) -> None:
    """As an array of texts, each padded to the longest, it would take 400 GB."""
    truth = build_truth()
    truth["gnd"][0]["easy"] = ["x" * 1_000_000, *[""] * 100_000]
    with pytest.raises(DataError, match="easy is not a list of indices"):
        open_set(write_set(tmp_path, truth))


@pytest.mark.parametrize("protocol", (2, 4))
def test_a_truncated_file_is_one_line_wherever_it_ends(tmp_path: Path, protocol: int) -> None:
    path = Path(write_set(tmp_path, build_truth(), protocol=protocol), NAME, f"gnd_{NAME}.pkl")
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=f"gnd_{NAME}"):
            open_set(str(tmp_path))


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(
    key=st.sampled_from(["", "gnd", "imlist", "qimlist", "bbx", "easy", "hard", "junk"]),
    value=PLAIN,
)
@example(key="bbx", value=[float("inf")] * 4)
@example(key="easy", value=[10**30])
@example(key="hard", value=[[0], [1, 2]])
@example(key="imlist", value=["x" * 5000, "\0", "\ud800", "d"])
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_another_structure_is_read_or_refused_in_one_line(
    tmp_path: Path, key: str, value: object
) -> None:
    content: Any = build_truth()
    if not key:
        content = value
    elif key in content:
        content[key] = value
    else:
        content["gnd"][0][key] = value
    try:
        found = open_set(write_set(tmp_path, content))
    except DataError as error:
        assert f"gnd_{NAME}.pkl" in str(error)
    else:
        assert len(found.truths) == 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda truth: truth.pop("qimlist"), "it has no 'qimlist'"),
        (lambda truth: truth["gnd"].pop(), "gnd describes 1 queries, qimlist names 2"),
        (lambda truth: truth["gnd"][1].pop("junk"), "it has no 'junk'"),
        (lambda truth: truth["gnd"][1].pop("bbx"), "it has no 'bbx'"),
        (
            lambda truth: truth["gnd"][0].update(easy=[4]),
            "easy has indices beyond the 4 images of imlist",
        ),
        (lambda truth: truth["gnd"][0].update(easy=[-1]), "easy has indices beyond"),
        (lambda truth: truth["gnd"][0].update(easy=[0.5]), "easy is not a list of indices"),
        (lambda truth: truth.update(imlist="abcd"), "imlist is not a list of image names"),
        (
            lambda truth: [query.update(easy=[], hard=[]) for query in truth["gnd"]],
            "no query has an easy or hard",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: Any, named: str) -> None:
    truth = build_truth()
    change(truth)
    with pytest.raises(
        DataError, match=rf"gnd_{NAME}\.pkl is not a ground truth of {NAME}: {named}"
    ):
        open_set(write_set(tmp_path, truth))


def test_boxes_are_asked_for_only_where_they_are_used(tmp_path: Path) -> None:
    truth = build_truth()
    del truth["gnd"][0]["bbx"]
    assert open_set(write_set(tmp_path, truth), crop_queries=False).source.boxes is None


def test_missing_files_are_named(tmp_path: Path) -> None:
    layout = rf"name the folder that holds {NAME}/gnd_{NAME}\.pkl and {NAME}/jpg"
    with pytest.raises(DataError, match=f"`data_path` is missing: {layout}"):
        open_landmarks(None, NAME, crop_queries=False)
    with pytest.raises(DataError, match=rf"gnd_{NAME}\.pkl does not exist; {layout}"):
        open_set(str(tmp_path / "gone"))
    with pytest.raises(
        DataError, match=r"lists jpg/c\.jpg, which does not exist; 2 of 6 images are missing"
    ):
        open_set(write_set(tmp_path, build_truth(), images="abdr"))


def test_the_shared_sets_are_read(shared_data: Path) -> None:
    for name, count in (("roxford5k", 152), ("rparis6k", 155)):
        found = open_landmarks(str(shared_data / "revisitop"), name, crop_queries=True)
        told = json.loads((shared_data / "revisitop" / name / f"gnd_{name}.json").read_text())
        assert found.source.names == tuple(
            f"jpg/{image}.jpg" for image in told["imlist"] + told["qimlist"]
        )
        assert len(found.source) == count
        for truth, entry in zip(found.truths, told["gnd"], strict=True):
            assert {key: part.tolist() for key, part in truth._asdict().items()} == {
                k: entry[k] for k in truth._fields
            }


def build_image(height: int, width: int, channels: int = 3) -> torch.Tensor:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 300))
@example(4000, 10, 224)
@example(10, 4000, 224)
@example(1, 1000, 3)
@settings(max_examples=60)
def test_views_are_pillows_thumbnails(height: int, width: int, longest: int) -> None:
    image = build_image(height, width)
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    assert compute_size(height, width, longest) == (picture.height, picture.width)
    view = Thumbnail(longest=longest)(image)
    assert torch.equal(view, torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1))


def test_gray_views_keep_their_channel() -> None:
    assert Thumbnail(longest=30)(build_image(40, 60, 1)).shape == (1, 20, 30)
    assert Thumbnail(longest=30, patch=8)(build_image(20, 30, 1)).shape == (1, 16, 24)


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(1, 300), st.sampled_from([1, 8, 16, 7])
)
def test_a_view_has_the_size_that_was_told(
    height: int, width: int, longest: int, patch: int
) -> None:
    thumbnail = Thumbnail(longest=longest, patch=patch)
    view = thumbnail(torch.zeros(1, height, width, dtype=torch.uint8))
    assert tuple(view.shape[1:]) == thumbnail.compute_size(height, width)


@given(st.integers(16, 90), st.integers(16, 90))
@example(47, 33)
@example(35, 40)
@example(33, 32)
@settings(max_examples=40)
def test_what_is_cut_off_is_what_the_network_drops(height: int, width: int) -> None:
    backbone = build_small_vit()
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    rows, columns = cut_to_patches(height, width, 16)
    with torch.inference_mode():
        assert torch.equal(backbone(image[..., :rows, :columns]), backbone(image))


def test_few_shapes_are_left() -> None:
    sizes = [(side, 224) for side in range(16, 225)] + [(224, side) for side in range(16, 225)]
    assert len({cut_to_patches(*size, 16) for size in sizes}) == 27  # of 417


@functools.cache
def build_small_vit() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_backbone("vit_mini", patch_size=16, img_size=32).eval()
