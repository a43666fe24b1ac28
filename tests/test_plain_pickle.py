"""Plain pickles read as `pickle.loads` reads them; anything else ends in one error and costs little."""

import collections
import functools
import os
import pickle
import pickletools
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from dino.plain_pickle import PlainPickleError, loads

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def assert_same(found: Any, expected: Any) -> None:
    """Equal values of equal types, whatever is in them."""
    assert type(found) is type(expected)
    if isinstance(expected, np.ndarray | np.generic):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        if expected.dtype.hasobject:
            assert_same(found.tolist(), expected.tolist())
        else:
            assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, dict):
        assert_same(list(found.items()), list(expected.items()))
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected or found != found and expected != expected


DTYPES = st.sampled_from(
    ["?", "u1", "<i2", ">i4", "<u8", "<f2", ">f4", "<f8", "<c8", "c16", "S3", "<U2", ">U3"]
)
SHAPES = array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
ARRAYS = DTYPES.flatmap(lambda dtype: arrays(dtype, SHAPES)) | arrays("<f4", SHAPES).map(
    np.asfortranarray
)
SCALARS = DTYPES.flatmap(lambda dtype: arrays(dtype, ())).map(lambda array: array[()])
BIG = st.integers(-(2**2040), 2**2040)
ATOMS = (
    st.none()
    | st.booleans()
    | st.integers()
    | BIG
    | st.floats()
    | st.text()
    | st.binary()
    | SCALARS
)
KEYS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda key: st.tuples(key, key),
)
VALUES = st.recursive(
    ATOMS | ARRAYS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=4)
        | inner.map(lambda value: [value, value])
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@given(value=VALUES)
@settings(max_examples=150)
def test_plain_values_are_read_as_pickle_reads_them(protocol: int, value: Any) -> None:
    assert_same(loads(pickle.dumps(value, protocol=protocol)), value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_less_common_forms_are_read(protocol: int) -> None:
    objects = np.empty((2, 2), dtype=object)
    objects[:] = [["a", 1], [None, 2.5]]
    text = "a" * 300
    value = {
        "objects": objects,
        "objects in columns": np.asfortranarray(objects),
        "views": np.arange(24, dtype=">i4").reshape(2, 3, 4).transpose(2, 0, 1)[::2],
        "shared": [text, text, (text, text)],
        "long": (text * 300, text.encode() * 300, list(range(2000)), dict.fromkeys(range(2000))),
        "nested": functools.reduce(lambda inner, _: [inner], range(90), 1),
        "empty": (b"", "", [], {}, (), np.zeros((3, 0, 2))),
        "texts": np.array(["cafe", "caf\xe9", "\U0001f600"]),
    }
    assert_same(loads(pickle.dumps(value, protocol=protocol)), value)
    ordered = collections.OrderedDict(b=1, a=2)
    assert_same(loads(pickle.dumps(ordered, protocol=protocol)), {"b": 1, "a": 2})


# In the opcodes of Python 2.7 with numpy 1: {"count": 3L, "names": ["a", "caf\xe9", u"\u20ac"], "found": True,
# "easy": array([1, 2], dtype=int32), "score": float64(1.5)}.
PYTHON_2 = {
    0: (
        b"(dp0\nS'count'\np1\nL3L\nsS'names'\np2\n(lp3\nS'a'\np4\naS'caf\\xe9'\np5\naV\\u20ac\np6\nasS'found'\np7\nI01\n"
        b"sS'easy'\np8\ncnumpy.core.multiarray\n_reconstruct\np9\n(cnumpy\nndarray\np10\n(I0\ntp11\nS'b'\np12\ntp13\n"
        b"Rp14\n(I1\n(I2\ntp15\ncnumpy\ndtype\np16\n(S'i4'\np17\nI0\nI1\ntp18\nRp19\n(I3\nS'<'\np20\nNNNI-1\nI-1\nI0\n"
        b"tp21\nbI00\nS'\\x01\\x00\\x00\\x00\\x02\\x00\\x00\\x00'\np22\ntp23\nbsS'score'\np24\ncnumpy.core.multiarray\n"
        b"scalar\np25\n(g16\n(S'f8'\np26\nI0\nI1\ntp27\nRp28\n(I3\nS'<'\np29\nNNNI-1\nI-1\nI0\ntp30\nb"
        b"S'\\x00\\x00\\x00\\x00\\x00\\x00\\xf8?'\np31\ntp32\nRp33\ns."
    ),
    2: (
        b"\x80\x02}q\x00(U\x05countq\x01\x8a\x01\x03U\x05namesq\x02]q\x03(U\x01aq\x04U\x04caf\xe9q\x05X\x03\x00\x00\x00"
        b"\xe2\x82\xacq\x06eU\x05foundq\x07\x88U\x04easyq\x08cnumpy.core.multiarray\n_reconstruct\nq\tcnumpy\nndarray\n"
        b"q\nK\x00\x85q\x0bU\x01bq\x0c\x87q\rRq\x0e(K\x01K\x02\x85q\x0fcnumpy\ndtype\nq\x10U\x02i4q\x11K\x00K\x01\x87"
        b"q\x12Rq\x13(K\x03U\x01<q\x14NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x15b\x89U\x08\x01\x00\x00\x00\x02"
        b"\x00\x00\x00q\x16tq\x17bU\x05scoreq\x18cnumpy.core.multiarray\nscalar\nq\x19h\x10U\x02f8q\x1aK\x00K\x01\x87"
        b"q\x1bRq\x1c(K\x03U\x01<q\x1dNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tq\x1ebU\x08\x00\x00\x00\x00\x00\x00"
        b"\xf8?q\x1f\x86q Rq!u."
    ),
}


@pytest.mark.parametrize("protocol", PYTHON_2)
def test_files_of_python_2_are_read(protocol: int) -> None:
    expected = {
        "count": 3,
        "names": ["a", "caf\xe9", "\u20ac"],
        "found": True,
        "easy": np.array([1, 2], "i4"),
        "score": np.float64(1.5),
    }
    assert_same(loads(PYTHON_2[protocol]), expected)
    assert_same(pickle.loads(PYTHON_2[protocol], encoding="latin1"), expected)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_files_of_numpy_1_and_2_are_read(protocol: int) -> None:
    """Its inner modules have another name in each; the file says whichever wrote it."""
    content = pickle.dumps(np.arange(3), protocol=protocol)
    for spelling in (b"numpy.core", b"numpy._core"):
        changed = b"".join(_rename(content, spelling))
        assert spelling in changed and loads(changed).tolist() == [0, 1, 2]


def _rename(content: bytes, spelling: bytes) -> list[bytes]:
    """The pickle with its inner modules of numpy spelled so, without frames; lengths are corrected."""
    parts, operations = [], list(pickletools.genops(content))
    ends = [place for _, _, place in operations[1:]] + [len(content)]
    for (code, value, place), end in zip(operations, ends, strict=True):
        old = next(
            (
                name
                for name in ("numpy._core", "numpy.core")
                if isinstance(value, str) and name in value
            ),
            None,
        )
        if code.name == "FRAME":
            continue
        piece = content[place:end]
        if old:
            piece = piece.replace(old.encode(), spelling)
            if code.name == "SHORT_BINUNICODE":
                piece = piece[:1] + bytes([len(piece) - 2]) + piece[2:]
        parts.append(piece)
    return parts


def test_arrays_are_writable_and_share_no_memory() -> None:
    array = np.arange(3)
    first, second = loads(pickle.dumps([array, array.copy()], protocol=5))
    first += 1
    assert first.tolist() == [1, 2, 3] and second.tolist() == [0, 1, 2]


EXAMPLE = {
    "gnd": [{"bbx": [1.5, 2, 3, 4], "easy": np.arange(4), "hard": [], "junk": (1, 2**70)}],
    "names": ["a", b"b", "caf\xe9"],
    "objects": np.array([None, "a"], dtype=object),
    ("key", 1): np.float32(2),
    "texts": np.array(["ab", "c"]),
}


@given(
    protocol=st.sampled_from(PROTOCOLS),
    edits=st.lists(
        st.tuples(st.integers(0, 2000), st.binary(max_size=3), st.integers(0, 3)), max_size=4
    ),
    end=st.none() | st.integers(0, 2000),
)
@settings(max_examples=1500)
def test_damaged_files_raise_the_one_error_or_are_read(
    protocol: int, edits: Any, end: int | None
) -> None:
    content = pickle.dumps(EXAMPLE, protocol=protocol)
    for place, replacement, dropped in edits:
        place %= len(content)
        content = content[:place] + replacement + content[place + dropped :]
    try:
        repr(loads(content[:end]))
    except PlainPickleError as error:
        assert str(error).isprintable() and len(str(error)) < 300


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from(pickletools.opcodes), max_size=30).map(
        lambda codes: "".join(code.code for code in codes).encode("latin1")
    )
)
@settings(max_examples=500)
def test_arbitrary_bytes_raise_the_one_error_or_are_read(content: bytes) -> None:
    for end in (b"", b"."):
        try:
            loads(content + end)
        except PlainPickleError as error:
            assert str(error)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_cut_short_anywhere_is_refused(protocol: int) -> None:
    content = pickle.dumps(EXAMPLE, protocol=protocol)
    for end in range(len(content)):
        with pytest.raises(PlainPickleError):
            loads(content[:end])


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "call",
    [
        *(
            (os.system, "touch RAN"),
            (eval, "open('RAN', 'w')"),
            (getattr, [], "append"),
            (np.load, "x.npy"),
        ),
        *((functools.partial, print), (np.memmap, "x"), (set, [1]), (bytearray, b"x"), (Path, "x")),
    ],
    ids=lambda call: call[0].__name__,
)
def test_nothing_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protocol: int, call: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        PlainPickleError, match="the pickled object .*, but only lists, numbers, texts and arrays"
    ):
        loads(pickle.dumps([Call(*call)], protocol=protocol))
    assert not Path("RAN").exists()


def number(value: int) -> bytes:
    return b"\x8a\x10" + value.to_bytes(16, "little", signed=True)


def share(count: int, pair: bytes) -> bytes:
    """Containers of the container before, twice: written out, the last one has 2**count parts."""
    return b")\x94" + b"".join(pair % (place, place) + b"\x94" for place in range(count))


DEEP = (
    b")" + b"\x85" * 200_000
)  # tuples in a tuple: no C stack is deep enough to hash or print them
START = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\x01btR"
FLOAT = b"cnumpy\ndtype\n(X\x02\0\0\0f4\x89\x88tR"
ENCODE = (
    b"c_codecs\nencode\nX"
    + (1000).to_bytes(4, "little")
    + b"a" * 1000
    + b"q\0X\6\0\0\0latin1q\1\x86Rq\2"
)

HOSTILE = {
    "a deep tuple as a key": (
        b"}" + DEEP + b"K\1s.",
        "a tuple of 100 values or more where a key belongs",
    ),
    "a deep tuple": (DEEP[:20_000] + b".", "nests more than 100 levels"),
    "a deep list": (b"]" * 20_000 + b"a" * 19_999 + b".", "nests more than 100 levels"),
    "deep dictionaries": (
        b"}K\1" * 20_000 + b"N" + b"s" * 20_000 + b".",
        "nests more than 100 levels",
    ),
    "a shared tuple as a key": (b"}(" + share(59, b"h%ch%c\x86") + b"u.", "where a key belongs"),
    "a shared tuple": (share(59, b"h%ch%c\x86") + b".", "repeats more than 10000000 values"),
    "a shared list": (share(59, b"](h%ch%ce") + b".", "repeats more than 10000000 values"),
    "a shared dictionary": (
        share(59, b"}(K\1h%cK\2h%cu") + b".",
        "repeats more than 10000000 values",
    ),
    "a list that holds itself": (b"]\x94h\0a.", "holds itself"),
    "a dictionary that holds itself, further down": (b"}\x94K\1(h\0ls.", "holds itself"),
    "a list as a key": (b"}]K\1s.", "a list where a key belongs"),
    "a text of 2**60 bytes": (b"\x8d" + (2**60).to_bytes(8, "little") + b"x.", "damaged: it has"),
    "bytes of 4 GiB": (b"B\xff\xff\xff\xffx.", "damaged: it has"),
    "a byte string of 4 GiB": (b"T\xff\xff\xff\xffx.", "damaged: it has"),
    "a byte array of 2**62 bytes": (
        b"\x96" + (2**62).to_bytes(8, "little") + b"x.",
        "damaged: it has",
    ),
    "an integer of 4 GiB": (b"\x8b\xff\xff\xff\xff\1.", "damaged: it has"),
    "an integer of 1 MB": (
        b"\x8b" + (10**6).to_bytes(4, "little") + b"\1" * 10**6 + b".",
        "more than 1024 bytes",
    ),
    "an integer of a million digits": (b"L" + b"9" * 10**6 + b"L\n.", "more than 2500 digits"),
    "a number in the memo of a million digits": (
        b"Np" + b"9" * 10**6 + b"\n.",
        "more than 2500 digits",
    ),
    "an array of 10 GB": (
        START + b"(K\1" + number(2_684_354_560) + b"\x85" + FLOAT + b"\x89C\4\0\0\0\0tb.",
        "claims",
    ),
    "an array of 2**66 bytes": (
        START + b"(K\1" + number(2**64) + b"\x85" + FLOAT + b"\x89C\4\0\0\0\0tb.",
        "claims",
    ),
    "an empty array of 2**62 rows": (
        START + b"(K\1(" + number(2**62) + b"K\0t" + FLOAT + b"\x89C\0tb.",
        "no content",
    ),
    "a negative side": (
        START + b"(K\1(" + number(-1) + number(-1) + b"t" + FLOAT + b"\x89C\4\0\0\0\0tb.",
        "a shape that is impossible",
    ),
    "one content for many arrays": (
        ENCODE + b"(" + (START + b"(K\1K\xfa\x85" + FLOAT + b"\x89h\2tb") * 30 + b"l.",
        "repeats its content",
    ),
    "one text for many byte strings": (
        ENCODE + b"(" + b"c_codecs\nencode\nh\0h\1\x86R" * 3000 + b"l.",
        "repeats its",
    ),
    "an array without content": (START + b".", "without content"),
    "an array in itself": (
        START + b"q\7(K\1K\1\x85cnumpy\ndtype\n(X\2\0\0\0O8\x89\x88tR\x89(h\7ltb.",
        "holds a array without content",
    ),
    "text beyond Unicode": (
        pickle.dumps(np.array(["ab"])).replace(b"a\0\0\0", b"\xff" * 4),
        "not Unicode",
    ),
    "a dtype": (pickle.dumps(np.dtype("f4")), "holds a dtype"),
    "a record": (pickle.dumps(np.zeros(2, "f4,i4")), "dtype 'V8'"),
    "a date": (pickle.dumps(np.zeros(2, "M8[s]")), "dtype 'M8'"),
    "a function": (b"cnumpy\nndarray\n.", "holds a name of a function or class"),
    "a dotted name": (
        b"\x8c\5numpy\x8c\x15ndarray.__class__.mro\x93.",
        "pickled object numpy.ndarray.__class__.mro",
    ),
    "a set": (pickle.dumps({1}, protocol=4), "opcode EMPTY_SET"),
    "an object": (b"ccollections\nOrderedDict\n)\x81.", "opcode NEWOBJ"),
    "a persistent id": (b"X\1\0\0\0aQ.", "opcode BINPERSID"),
    "a later protocol": (b"\x80\6N.", "protocol must be 0 to 5 (got 6)"),
    "another encoding": (b"c_codecs\nencode\nX\1\0\0\0aX\3\0\0\0zip\x86R.", "encoding 'zip'"),
    "a name with control characters": (b"cos\x1b[31m\nsystem\n.", "os?[31m.system"),
    "nothing": (b"", "damaged"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_little_memory(name: str) -> None:
    content, reason = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(PlainPickleError) as caught:
            loads(content)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reason in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 300
    assert most < 2**20 + 500 * len(content)
