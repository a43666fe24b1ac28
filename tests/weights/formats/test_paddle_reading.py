"""Paddle's files are read without running anything in them, whatever is in them."""

import _codecs
import collections
import io
import os
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dino.errors import CheckpointError
from dino.weights.formats.paddle import NAME_TABLE, SLICES, read_paddle

ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "number": np.float32(2.5).reshape(()),
}


def write(folder: Path, content: Any, protocol: int = 4) -> Path:
    path = folder / "weights.pdparams"
    path.write_bytes(
        content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol)
    )
    return path


def assert_equal(found: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].shape == array.shape
        assert np.array_equal(found[name].numpy(), array)


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_names_and_arrays_come_out_as_they_went_in(
    tmp_path: Path, protocol: int, kind: type
) -> None:
    content = kind({**ARRAYS, NAME_TABLE: {"matrix": "linear_0.w_0"}})
    assert_equal(read_paddle(write(tmp_path, content, protocol)), ARRAYS)


def test_every_file_that_paddle_wrote_is_what_unpickling_gives(shared_data: Path) -> None:
    for path in sorted((shared_data / "passl").glob("*.pdparams")):
        expected = pickle.loads(path.read_bytes())  # these files are known
        del expected[NAME_TABLE]
        assert_equal(read_paddle(path), expected)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i1", "i4", "i8", "u1", "b1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_number_formats_and_memory_orders_are_kept(tmp_path: Path, kind: str, order: Any) -> None:
    array = np.asarray(np.arange(24).reshape(2, 3, 4) % 2, dtype=kind, order=order)
    found = read_paddle(write(tmp_path, {"a": array}))["a"]
    assert found.dtype == torch.from_numpy(array.copy()).dtype
    assert np.array_equal(found.numpy(), array)


@given(array=arrays(np.float32, array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)))
def test_any_array_is_read(array: np.ndarray) -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = read_paddle(write(Path(folder), {"a": array}))["a"].numpy()
    assert found.shape == array.shape and found.tobytes() == array.tobytes()


def test_bfloat16_is_read_from_its_bits(tmp_path: Path) -> None:
    wanted = torch.tensor([1.0, -2.5, 3e20], dtype=torch.bfloat16)
    found = read_paddle(write(tmp_path, {"a": wanted.view(torch.int16).numpy().view(np.uint16)}))[
        "a"
    ]
    assert found.dtype == torch.bfloat16 and torch.equal(found, wanted)


def test_a_network_may_lie_deeper_its_tensors_paired_with_their_names(tmp_path: Path) -> None:
    inner = collections.OrderedDict(
        (name, (f"param_{name}", array)) for name, array in ARRAYS.items()
    )
    found = read_paddle(write(tmp_path, {"state_dict": inner, "epoch": 3, "note": "text"}))
    assert (found["epoch"], found["note"]) == (3, "text")
    assert_equal(found["state_dict"], ARRAYS)


def test_numpy_numbers_are_read(tmp_path: Path) -> None:
    assert read_paddle(write(tmp_path, {"a": np.float32(1.5)}))["a"].item() == 1.5


def test_tensors_that_were_cut_are_joined(tmp_path: Path) -> None:
    whole = np.arange(12, dtype=np.float32).reshape(3, 4)
    pieces = {"w@@.0": whole.ravel()[:5], "w@@.1": whole.ravel()[5:]}
    table = {"w": {"OriginShape": (3, 4), "slices": ["w@@.0", "w@@.1"]}}
    assert_equal(read_paddle(write(tmp_path, {**pieces, SLICES: table}, 2)), {"w": whole})


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def claim(shape: tuple[int, ...], raw: bytes = b"1234", kind: str = "f4") -> bytes:
    """A pickle of one array that claims a shape; the claims are in the state, where numpy's own
    reader finds them."""
    honest = pickle.dumps({"a": np.zeros(1, dtype="f4")}, protocol=4)
    head, tail = honest.split(b"K\x01\x85")  # the shape (1,)
    file = io.BytesIO()
    pickler = pickle.Pickler(file, protocol=4)
    pickler.fast = True
    pickler.dump(shape)
    return (
        (head + file.getvalue()[2:-1] + tail)
        .replace(b"\x02f4", b"\x02" + kind.encode())
        .replace(b"\0\0\0\0", raw)
    )


def text(word: str) -> bytes:
    """A pickle's string."""
    return b"\x8c" + bytes([len(word)]) + word.encode()


def share(count: int) -> bytes:
    """Tuples of the tuple before, twice: whoever looks into the last one looks 2**count times."""
    return b")\x94" + b"".join(b"h%ch%c\x86\x94" % (place, place) for place in range(count))


PAIR = {"w": {"OriginShape": [2], "slices": [(((),),)]}}
DEEP = b")" + b"\x85" * 200_000  # tuples in tuples: no C stack is deep enough to hash or print them
ARRAY = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR"
FLOAT = b"cnumpy\ndtype\n(X\x02\0\0\0f4\x89\x88tR"

REFUSED = {
    "a deep tuple as a key": (
        b"\x80\x04}" + DEEP + b"K\x01s.",
        "a tuple of 100 values or more where a key belongs",
    ),
    "a deep tuple as a dtype": (
        b"\x80\x04}" + text("a") + b"cnumpy\ndtype\n" + DEEP + b"\x85Rs.",
        "a tuple where",
    ),
    "a deep tuple as an object's name": (
        b"\x80\x04" + DEEP + text("x") + b"\x93.",
        "a tuple where a str belongs",
    ),
    "a deep tuple as a shape": (
        b"\x80\x04}" + text("a") + ARRAY + b"(K\x01" + DEEP + FLOAT + b"\x89C\x04\0\0\0\0tbs.",
        "a tuple where a int belongs",
    ),
    "a deep tuple as a byte order": (
        b"\x80\x04}" + text("a") + FLOAT + b"(K\x03" + DEEP + b"tbs.",
        "a tuple where a str belongs",
    ),
    "a shared tuple as a key": (
        b"\x80\x04}(" + share(59) + b"u.",
        "a tuple of 100 values or more where a key belongs",
    ),
    "a shared tuple as a shape": (
        b"\x80\x04}"
        + text("a")
        + ARRAY
        + b"(K\x01("
        + share(40)
        + b"t"
        + FLOAT
        + b"\x89C\x04\0\0\0\0tbs.",
        "claims a shape",
    ),
    "a shape of a million sides": (claim((2**2000,) * 100_000), "claims a shape"),
    "a tuple as a piece of a tensor": (
        pickle.dumps({SLICES: PAIR}, protocol=2),
        "a name must be a str (got tuple)",
    ),
    "a number as a key": (
        pickle.dumps({1: np.zeros((2, 2), "f4")}, protocol=4),
        "a name must be a str (got int)",
    ),
    "nothing as a key": (
        pickle.dumps({None: 3}, protocol=4),
        "a name must be a str (got NoneType)",
    ),
    "a call of os.system": (pickle.dumps({"a": Call(os.system, "touch RAN")}), "system"),
    "a call of eval": (pickle.dumps({"a": Call(eval, "open('RAN', 'w')")}), "eval"),
    "an object of a class": (pickle.dumps({"a": Path("x")}), "PosixPath"),
    "a scheduler of PASSL": (b"\x80\x02cpassl.scheduler.lr_scheduler\nTimmCosine\n.", "TimmCosine"),
    "an array of objects": (pickle.dumps({"a": np.array([None])}, protocol=4), "dtype 'O'"),
    "text in an array": (pickle.dumps({"a": np.array(["ab"])}, protocol=4), "dtype 'U2'"),
    "a shape of 10 GB": (claim((2_684_354_560,)), "claims the shape"),
    "a shape whose product overflows": (claim((2**62, 2**62, 16)), "claims the shape"),
    "a negative shape": (claim((-1, -1)), "claims a shape"),
    "another byte order": (pickle.dumps({"a": np.zeros(2, ">f4")}, protocol=4), "dtype '>f4'"),
    "a truncated pickle": (pickle.dumps(ARRAYS, protocol=4)[:-20], "damaged"),
    "an array without content": (
        b"\x80\x04}\x8c\x01acnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btRs.",
        "without content",
    ),
    "no pickle": (b"PK\x03\x04 a zip file", "damaged"),
    "an empty file": (b"", "damaged"),
    "a list": (pickle.dumps([1, 2]), "must hold a dictionary of arrays (got list)"),
    "an opcode of objects": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    "a persistent id": (b"\x80\x02U\x01aQ.", "opcode"),
    "an array of another class": (
        b"\x80\x02}U\x01acnumpy.core.multiarray\n_reconstruct\n(ccollections\nOrderedDict\nK\0\x85U\x01btRs.",
        "damaged",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_and_broken_files_end_in_one_line_and_nothing_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    content, reason = REFUSED[name]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"weights\.pdparams is damaged or not a Paddle weights file: "
    ) as caught:
        read_paddle(write(tmp_path, content))
    assert reason in str(caught.value)
    assert not (tmp_path / "RAN").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.pdparams cannot be read"):
        read_paddle(tmp_path / "gone.pdparams")


def test_a_small_file_cannot_unfold_to_a_large_one(tmp_path: Path) -> None:
    text = "x" * 1000
    bomb = io.BytesIO()
    pickler = pickle.Pickler(bomb, protocol=2)
    pickler.dump([Call(_codecs.encode, text, "latin1") for _ in range(3000)])
    with pytest.raises(CheckpointError, match="repeats its content"):
        read_paddle(write(tmp_path, bomb.getvalue()))


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"a": np.zeros(2, np.float32)}
    loop["loop"] = loop
    with pytest.raises(CheckpointError, match="a container in it holds itself"):
        read_paddle(write(tmp_path, loop))


@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 400))
def test_no_damage_gives_anything_but_an_answer_or_the_one_error(
    place: int, byte: int, cut: int
) -> None:
    honest = bytearray(
        pickle.dumps({**ARRAYS, "inner": {"x": ("name", ARRAYS["matrix"])}}, protocol=4)
    )
    honest[place % len(honest)] = byte
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), bytes(honest[: len(honest) - cut % 40]))
        try:
            read_paddle(path)
        except CheckpointError as error:
            assert str(path) in str(error)
