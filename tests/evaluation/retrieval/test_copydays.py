"""Copydays is read from what is there: which blocks, how many images, and whose copy each one
is."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino.errors import DataError
from dino.evaluation.retrieval import copydays as rooms
from dino.evaluation.retrieval.copydays import open_copydays


def write_blocks(root: Path, **blocks: list[str]) -> Path:
    """Empty files; blocks of a family are written `jpegqual_3`."""
    for block, names in blocks.items():
        for name in names:
            path = root / block.replace("_", "/") / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    return root


ORIGINALS = ["200000.jpg", "200100.jpg", "200200.jpg"]


def test_blocks_are_those_on_disk_in_the_originals_order(tmp_path: Path) -> None:
    some = {f"jpegqual_{quality}": ["200010.jpg"] for quality in (75, 8, 100, ".hidden")}
    more = {f"crops_{share}": ["200020.jpg", "200220.jpg"] for share in ("80", "10", "mine")}
    found = open_copydays(
        str(write_blocks(tmp_path, original=ORIGINALS, strong=["200101.jpg"], **some, **more))
    )
    blocks = [
        "original",
        "strong",
        "jpegqual/8",
        "jpegqual/75",
        "jpegqual/100",
        "crops/10",
        "crops/80",
        "crops/mine",
    ]
    assert [block.name for block in found.blocks] == blocks
    assert [len(block.positives) for block in found.blocks] == [3, 1, 1, 1, 1, 2, 2, 2]
    files = [f"{block.name}/" for block in found.blocks for _ in block.positives]
    assert all(
        name.startswith(block) for name, block in zip(found.source.names, files, strict=True)
    )
    assert found.source.path(3) == tmp_path / "strong" / "200101.jpg"


def test_a_copy_belongs_to_the_originals_of_its_first_four_characters(tmp_path: Path) -> None:
    strong = ["200001.jpg", "200201.jpg", "200202.jpg"]
    root = write_blocks(
        tmp_path, original=[*ORIGINALS, "200250.jpg"], strong=strong, jpegqual_3=["200110.jpg"]
    )
    blocks = {block.name: block.positives for block in open_copydays(str(root)).blocks}
    assert blocks["strong"] == ((0,), (2, 3), (2, 3))
    assert blocks["jpegqual/3"] == ((1,),)


def test_the_originals_rule_holds_for_other_names_too(tmp_path: Path) -> None:
    """Outside of `strong` file k is a copy of original k, whatever they are called."""
    names = ["IMG_1.jpg", "IMG_2.jpg"]
    root = write_blocks(tmp_path, original=names, strong=["IMG_9.jpg"], crops_10=["a.png", "b.png"])
    blocks = {block.name: block.positives for block in open_copydays(str(root)).blocks}
    assert blocks["original"] == blocks["crops/10"] == ((0,), (1,))
    assert blocks["strong"] == ((0, 1),)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=6, unique=True), st.data())
def test_an_incomplete_block_keeps_its_owners(kept: list[int], data: st.DataObject) -> None:
    originals = [f"20{number:02}00.jpg" for number in range(100)]
    copies = sorted(f"20{number:02}{data.draw(st.integers(0, 99)):02}.jpg" for number in kept)
    positives = rooms._match(Path("jpegqual/3"), copies, originals)
    assert positives == tuple((number,) for number in sorted(kept))


@pytest.mark.parametrize(
    ("blocks", "named"),
    [
        ({}, r"has no folder original and no strong: Copydays has the folders"),
        ({"original": ORIGINALS}, "has no folder strong: Copydays has the folders"),
        ({"strong": ORIGINALS}, "has no folder original: Copydays has the folders"),
        (
            {"original": ["readme.txt"], "strong": ORIGINALS},
            r"`data_path` \S+/original holds no image",
        ),
        (
            {"original": ORIGINALS, "strong": ["readme.txt"]},
            r"`data_path` \S+/strong holds no image",
        ),
        (
            {"original": ORIGINALS, "strong": ["200001.jpg", "300000.jpg"]},
            r"strong/300000\.jpg: no original's name",
        ),
        (
            {"original": ORIGINALS, "strong": ["200001.jpg"], "crops_10": ["a.jpg", "b.jpg"]},
            r"crops/10 holds 2 images for 3 originals, and the first 4 characters",
        ),
    ],
    ids=[
        "nothing",
        "no strong",
        "no original",
        "empty original",
        "empty strong",
        "orphan",
        "unmatched",
    ],
)
def test_what_is_not_there_is_named(
    tmp_path: Path, blocks: dict[str, list[str]], named: str
) -> None:
    with pytest.raises(DataError, match=named):
        open_copydays(str(write_blocks(tmp_path, **blocks)))


def test_without_a_path_the_layout_is_told() -> None:
    with pytest.raises(
        DataError, match="`data_path` is missing: Copydays has the folders original and strong"
    ):
        open_copydays(None)


def test_the_shared_set_has_twenty_blocks(shared_data: Path) -> None:
    found = open_copydays(str(shared_data / "copydays"))
    sizes = {block.name: len(block.positives) for block in found.blocks}
    assert len(sizes) == 20 and sum(sizes.values()) == len(found.source) == 614
    assert {sizes.pop("strong"), *sizes.values()} == {44, 30}
    assert all(
        block.positives == tuple((k,) for k in range(30))
        for block in found.blocks
        if block.name != "strong"
    )
