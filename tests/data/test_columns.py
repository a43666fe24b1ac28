"""Packed columns are the same values: in any order, for any reader, and pickled without them."""

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.data import columns
from dino.data.columns import (
    Array,
    Names,
    Numbers,
    join_names,
    pack_array,
    pack_names,
    pack_numbers,
)
from dino.data.image_source import ImageSource
from dino.data.shards import Members

ODD = ("", "ü/2.png", "a\nb.png", os.fsdecode(b"\xff\xfe.png"), "日本.jpg", " ", "\0")


@pytest.fixture(autouse=True)
def _pack_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LARGE", 1)


@settings(max_examples=50)
@given(st.lists(st.sampled_from(ODD) | st.text(st.characters(exclude_categories=["Cs"]))))
def test_names_come_back_as_they_were(names: list[str]) -> None:
    packed = pack_names(names)
    assert isinstance(packed, Names if names else tuple)
    assert list(packed) == names
    assert [packed[index] for index in range(len(names))] == names
    assert bytes(join_names(packed)) == bytes(join_names(names))


@settings(max_examples=50)
@given(st.slices(9), st.integers(-9, 8), st.sampled_from([columns.BLOCK, 1, 4]))
def test_a_column_is_read_like_a_tuple(key: slice, index: int, block: int) -> None:
    names, numbers = tuple(f"{3**i}" for i in range(9)), tuple(5**i for i in range(9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "BLOCK", block)
        for values, packed in ((names, pack_names(names)), (numbers, pack_numbers(numbers))):
            assert packed[key] == values[key]
            assert packed[index] == values[index]
            assert tuple(packed) == values
            assert packed == values
            assert values == packed
            assert packed != values[1:]
            with pytest.raises(IndexError):
                packed[9]


def test_labels_are_plain_numbers() -> None:
    assert {type(label) for label in pack_numbers([0, 2**40])} == {int}


def test_few_values_stay_a_tuple(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "LARGE", 3)
    assert isinstance(pack_names(["a", "b"]), tuple)
    assert isinstance(pack_numbers([1, 2]), tuple)
    assert isinstance(pack_array(np.zeros((2, 3))), np.ndarray)
    assert isinstance(pack_names(["a", "b", "c"]), Names)


def test_what_is_packed_is_not_packed_again() -> None:
    for values in (pack_names(["a"]), pack_numbers([1]), pack_array(np.zeros(1))):
        pack = {Names: pack_names, Numbers: pack_numbers, Array: pack_array}[type(values)]
        assert pack(values) is values


def test_names_that_no_file_can_have_stay_as_they_are() -> None:
    assert pack_names(["\ud800"]) == ("\ud800",)


def test_a_full_disk_costs_memory_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    assert pack_names(["a", "b"]) == ("a", "b")
    assert "every loader process has its own names of the images: [Errno 28]" in caplog.text


def build(count: int) -> ImageSource:
    """A source of `count` images in shards, with labels."""
    places = np.arange(3 * count).reshape(count, 3) % 1000 * [0, 1, 1]
    return ImageSource(
        root=Path("data"),
        names=[f"class_{index % 1000}/image_{index}.JPEG" for index in range(count)],
        labels=[index % 1000 for index in range(count)],
        members=Members(((Path("0.tar"), (1, 2, 3)),), places),
    )


def test_a_source_of_100000_images_is_pickled_in_a_few_bytes() -> None:
    plain = build(100_000)
    packed = plain.packed()
    sent = ForkingPickler.dumps(packed)
    assert len(sent) < 10_000 < len(ForkingPickler.dumps(plain)) / 100
    received = pickle.loads(sent)
    assert received.names == packed.names == plain.names
    assert received.labels == plain.labels
    assert received.fingerprint() == packed.fingerprint() == plain.fingerprint()
    assert np.array_equal(received.members.places, plain.members.places)


def read(source: ImageSource, indices: Sequence[int], answers: multiprocessing.Queue) -> None:
    answers.put([(str(source.file(index)), source.labels[index]) for index in indices])


def test_a_forked_process_reads_what_its_parent_has() -> None:
    """Those of a fork server are tested along with the loaders."""
    source = build(9).selected([8, 1, 1]).packed()
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=read, args=(source, range(3), answers))
    child.start()
    first, others = ("0.tar/class_8/image_8.JPEG", 8), ("0.tar/class_1/image_1.JPEG", 1)
    assert answers.get(timeout=120) == [first, others, others]
    child.join(120)
    assert child.exitcode == 0


def test_a_selection_keeps_the_order_and_is_packed_itself() -> None:
    chosen = build(9).packed().selected([8, 0, 3])
    assert isinstance(chosen.names, Names)
    assert isinstance(chosen.labels, Numbers)
    assert isinstance(chosen.members.places, Array)
    assert chosen.names[0] == "class_8/image_8.JPEG"
    assert chosen == build(9).selected([8, 0, 3])
    assert chosen.members.member(1, "a").offset == 1


def test_the_file_is_closed_with_its_last_reader() -> None:
    before = len(os.listdir("/proc/self/fd"))
    packed = [pack_names(["a"]) for _ in range(5)]
    assert len(os.listdir("/proc/self/fd")) > before
    del packed
    assert len(os.listdir("/proc/self/fd")) == before
