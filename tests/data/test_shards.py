"""Shards are a folder in another form: the same images, labels, crops and shares, or one line that
says why not."""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.data import index, shards
from dino.data.crops import CropRecipe, Crops
from dino.data.datasets import CropDataset, Share
from dino.data.decode import read_image
from dino.data.image_source import ImageSource
from dino.data.listing import show
from dino.data.loaders import build_train_loader
from dino.data.packing import Packing, pack_images
from dino.data.shard_files import LocalShard
from dino.data.shard_names import expand_braces, find_shards
from dino.data.sources import (
    find_images,
    open_images,
    open_labelled_splits,
    open_online_splits,
    open_training_source,
)
from dino.errors import DataError

COUNT, SIZE = 22, 5
RECIPE = CropRecipe(global_size=16, local_size=8, local_views=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> ImageSource:
    """22 images of noise in two class folders."""
    root, rng = tmp_path_factory.mktemp("images") / "train", np.random.default_rng(0)
    for number in range(COUNT):
        path = root / ("ant", "bee")[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
    return open_training_source(str(root))


@pytest.fixture(scope="module")
def packed(folder: ImageSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shards train-000000.tar to train-000004.tar."""
    out = tmp_path_factory.mktemp("packed")
    assert len(list(pack_images(folder, out, Packing(SIZE), workers=2))) == 5
    return out


def pattern_of(packed: Path) -> str:
    return str(packed / "train-{000000..000004}.tar")


def read(
    source: ImageSource, epoch: int, *, start: int = 0, workers: int = 0, **share: int
) -> list[Crops]:
    batch = 4 // share.get("world_size", 1)
    dataset = CropDataset(source, RECIPE, seed=5, skip_bad=False)
    loader = build_train_loader(
        dataset, batch_size=batch, share=Share(**share), workers=workers, pin_memory=False
    )
    return list(loader.read(epoch, start))


def assert_equal(one: list[Crops], two: list[Crops]) -> None:
    assert len(one) == len(two) > 0
    for left, right in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def picture(value: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (9, 8), (value, 0, 0)).save(out, "png")
    return out.getvalue()


def test_shards_hold_what_the_folder_holds(folder: ImageSource, packed: Path) -> None:
    for path in (pattern_of(packed), str(packed / "train-*.tar"), str(packed)):
        source = open_training_source(path)
        assert (source.names, source.labels, source.classes) == (
            folder.names,
            folder.labels,
            folder.classes,
        )
        assert (
            source.fingerprint() == folder.fingerprint()
        )  # a run may change from one form to the other
        assert source.root == packed
    assert all(
        torch.equal(read_image(source.file(i)), read_image(folder.path(i))) for i in range(COUNT)
    )
    assert source.read_size(3) == (20, 24)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_crops_are_those_of_the_folder(folder: ImageSource, packed: Path, workers: int) -> None:
    source = open_training_source(pattern_of(packed))
    assert_equal(read(source, 1, workers=workers), read(folder, 1))


def test_two_ranks_share_what_one_reads(folder: ImageSource, packed: Path) -> None:
    source = open_training_source(pattern_of(packed))
    ranks = [read(source, 0, rank=rank, world_size=2) for rank in range(2)]
    both = [
        Crops(*(torch.stack(fields, 1).flatten(0, 1) for fields in zip(*batches, strict=True)))
        for batches in zip(*ranks, strict=True)
    ]
    assert_equal(both, read(folder, 0))


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_continues_with_exactly_the_unseen_images(
    folder: ImageSource, packed: Path, workers: int
) -> None:
    source = open_training_source(pattern_of(packed))
    assert_equal(read(source, 3, start=2, workers=workers), read(folder, 3)[2:])


def test_a_limit_keeps_the_places(folder: ImageSource, packed: Path) -> None:
    source, plain = open_training_source(pattern_of(packed), 7), folder.limited(7)
    assert source.names == plain.names
    assert all(torch.equal(read_image(source.file(i)), read_image(plain.path(i))) for i in range(7))


def test_folders_of_shards_are_splits(folder: ImageSource, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        list(pack_images(folder, tmp_path / split, Packing(9), workers=1))
    train, test = open_labelled_splits(str(tmp_path))
    assert train.labels == test.labels == folder.labels
    assert open_training_source(str(tmp_path)).root == tmp_path / "train"
    assert open_online_splits(str(tmp_path / "train" / "*.tar"))[1].root == tmp_path / "val"


def test_shards_of_two_sets_in_one_folder_are_refused(tmp_path: Path) -> None:
    for name in ("train-0.tar", "train-1.tar", "val-0.tar"):
        write_tar(tmp_path / name, {"a.png": picture()})
    with pytest.raises(DataError, match=r"holds shards of several sets \(train-, val-\)"):
        open_training_source(str(tmp_path))
    assert len(open_training_source(str(tmp_path / "train-{0,1}.tar"))) == 2


def test_flags_for_plain_images_do_not_take_shards(packed: Path) -> None:
    with pytest.raises(DataError, match="`image_path` .* holds no image"):
        find_images(str(packed), "`image_path`")


def test_labels_of_cls_members_win_over_folders_that_are_no_classes(tmp_path: Path) -> None:
    members = {
        "part0/x.png": picture(),
        "part0/x.cls": b"2",
        "part0/y.left.png": picture(),
        "part0/y.cls": b" 0\n",
    }
    source = open_images(str(write_tar(tmp_path / "a.tar", members)))
    assert (source.names, source.labels) == (("part0/x.png", "part0/y.left.png"), (2, 0))
    assert source.classes == ("0", "1", "2")


def test_without_folders_or_numbers_there_are_no_labels(tmp_path: Path) -> None:
    members = {"./a.png": picture(), "b.png": picture(), "b.cls": b"1", "b.json": b"{}"}
    source = open_images(str(write_tar(tmp_path / "a.tar", members)))
    assert (source.names, source.labels) == (("a.png", "b.png"), None)


def test_a_label_that_is_no_number_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.cls must hold a class number \(got b'cat'"):
        open_images(str(write_tar(tmp_path / "a.tar", {"x.png": picture(), "x.cls": b"cat"})))


def test_webdataset_reads_what_is_packed(folder: ImageSource, packed: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    samples = list(webdataset.WebDataset(pattern_of(packed), shardshuffle=False, empty_check=False))
    assert [f"{sample['__key__']}.jpg" for sample in samples] == list(folder.names)
    assert [int(sample["cls"]) for sample in samples] == list(folder.labels or ())
    assert all(sample["jpg"] == folder.path(i).read_bytes() for i, sample in enumerate(samples))


def test_what_webdataset_writes_is_read(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/s-%06d.tar", maxcount=2, verbose=0) as writer:
        for number in range(5):
            writer.write({"__key__": f"k{number}", "png": picture(number), "cls": number % 3})
    source = open_training_source(str(tmp_path / "s-{000000..000002}.tar"))
    assert source.names == tuple(f"k{number}.png" for number in range(5))
    assert source.labels == (0, 1, 2, 0, 1)
    assert [int(read_image(source.file(number))[0, 0, 0]) for number in range(5)] == [0, 1, 2, 3, 4]


def test_a_damaged_member_stops_or_is_counted(folder: ImageSource, tmp_path: Path) -> None:
    members = {name: folder.path(i).read_bytes() for i, name in enumerate(folder.names)}
    members[folder.names[4]] = members[folder.names[4]][:40]
    source = open_training_source(str(write_tar(tmp_path / "a.tar", members)))
    error = CropDataset(source, RECIPE, seed=5, skip_bad=False)[0, 4]
    assert isinstance(error, DataError)
    assert str(error).startswith(f"{tmp_path / 'a.tar'}/{folder.names[4]} cannot be decoded")
    crops = CropDataset(source, RECIPE, seed=5, skip_bad=True)[0, 4]
    assert isinstance(crops, Crops) and int(crops.replaced) == 1


@pytest.mark.parametrize("kept", [0, 100, 512, 700, 1536, 2048, 3000])
def test_a_shard_that_was_cut_short_is_named(tmp_path: Path, kept: int) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{number}.png": picture(number) for number in range(3)})
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"a\.tar .*truncated") as caught:
        open_training_source(str(path))
    assert "\n" not in str(caught.value)


def test_a_shard_damaged_in_the_middle_is_named(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{number}.png": picture(number) for number in range(3)})
    content = bytearray(path.read_bytes())
    content[1024:1100] = b"?" * 76  # the second header; tarfile alone takes it for the end
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar is damaged or truncated at byte 1024"):
        open_training_source(str(path))


def test_shards_without_images_links_and_packed_ones_are_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "none.tar", {"notes.txt": b""})
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        member = tarfile.TarInfo("a.png")
        member.type, member.linkname = tarfile.LNKTYPE, "b.png"
        tar.addfile(member)
    (tmp_path / "packed.tar.gz").touch()
    (tmp_path / "text.tar").write_text("no tar file at all" * 100)
    for name, text in {
        "none.tar": "holds no image",
        "link.tar": "holds a.png as a link",
        "packed.tar.gz": "is not an uncompressed .tar file; decompress",
        "text.tar": "is not a tar file",
    }.items():
        with pytest.raises(DataError, match=text):
            open_training_source(str(tmp_path / name))


def test_missing_and_repeated_shards_are_named(packed: Path) -> None:
    with pytest.raises(
        DataError, match=r"2 of 7 shards are missing, the first is .*train-000005\.tar"
    ):
        open_training_source(str(packed / "train-{000000..000006}.tar"))
    with pytest.raises(DataError, match="1 of 1 shards are missing"):
        open_training_source(str(packed / "nothing-*.tar"))
    with pytest.raises(DataError, match=r"names the shard .*train-000001\.tar twice"):
        open_training_source(str(packed / "train-{000001,00000*}.tar"))


def test_a_shard_that_changes_under_a_run_is_noticed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(1), "b.png": picture(2)})
    source = open_training_source(str(path))
    write_tar(tmp_path / "new.tar", {"b.png": picture(2), "a.png": picture(1)})
    os.replace(tmp_path / "new.tar", path)
    with pytest.raises(DataError, match=r"a\.tar has changed since the run began"):
        read_image(source.file(0))


def test_only_changed_shards_are_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINO_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "WORTH", 1)
    monkeypatch.setattr(index, "FRESH", 0)
    for number in range(20):
        write_tar(tmp_path / f"{number:02}.tar", {f"{number}.png": picture(number)})
    first, scanned, plain = open_training_source(str(tmp_path / "*.tar")), [], shards.scan_shard

    def scan(shard: LocalShard, stamp: index.Stamp) -> shards.Contents:
        scanned.append(shard.path.name)
        return plain(shard, stamp)

    monkeypatch.setattr(shards, "scan_shard", scan)
    assert open_training_source(str(tmp_path / "*.tar")) == first and scanned == []
    write_tar(tmp_path / "17.tar", {"x.png": picture(), "y.png": picture(99)})
    again = open_training_source(str(tmp_path / "*.tar"))
    assert scanned == ["17.tar"]
    assert again.names[16:20] == ("16.png", "x.png", "y.png", "18.png")
    assert int(read_image(again.file(18))[0, 0, 0]) == 99


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("a-{8..11}.tar", ["a-8.tar", "a-9.tar", "a-10.tar", "a-11.tar"]),
        ("a-{0..10}.tar", [f"a-{number}.tar" for number in range(11)]),
        ("a-{008..010}.tar", ["a-008.tar", "a-009.tar", "a-010.tar"]),
        ("{b,a}-{0..1}.tar", ["b-0.tar", "b-1.tar", "a-0.tar", "a-1.tar"]),
        ("{x,}.tar", ["x.tar", ".tar"]),
        ("{a,{b,c}}.tar", ["a.tar", "b.tar", "c.tar"]),
        ("{t-{0..2},v-{00..1}}.tar", ["t-0.tar", "t-1.tar", "t-2.tar", "v-00.tar", "v-01.tar"]),
    ],
)
def test_braces_are_written_out_as_by_a_shell(pattern: str, expected: list[str]) -> None:
    assert expand_braces(pattern) == expected


@pytest.mark.parametrize(
    "pattern",
    [
        "{a,{b}}.tar",
        "{a,b-{5..2}}.tar",
        "{{0..2}}.tar",
        "{0..3.tar",
        "0..3}.tar",
        "{5..2}.tar",
        "{a}.tar",
        "{a..c}.tar",
    ],
)
def test_other_braces_are_refused(pattern: str) -> None:
    with pytest.raises(DataError, match="braces must hold|descending") as raised:
        expand_braces(pattern)
    assert str(raised.value).startswith(f"{pattern}: ")


WORD = st.text("ab-/._0", max_size=5)


@given(
    head=WORD,
    first=st.integers(0, 300),
    count=st.integers(0, 40),
    width=st.integers(1, 6),
    tail=WORD,
)
def test_a_range_holds_every_number_once(
    head: str, first: int, count: int, width: int, tail: str
) -> None:
    numbers = [f"{first + step:0{width}}" for step in range(count + 1)]
    assert expand_braces(head + "{" + f"{numbers[0]}..{numbers[-1]}" + "}" + tail) == [
        head + number + tail for number in numbers
    ]


@given(st.lists(WORD | st.lists(WORD, min_size=2, max_size=3), max_size=4))
def test_lists_are_multiplied_out_in_order(parts: list[str | list[str]]) -> None:
    expected = [""]
    for part in parts:
        expected = [
            head + word for head in expected for word in ([part] if isinstance(part, str) else part)
        ]
    pattern = "".join(
        part if isinstance(part, str) else "{" + ",".join(part) + "}" for part in parts
    )
    assert expand_braces(pattern) == expected


@given(st.text("{}.,0123ab", max_size=12))
def test_no_text_of_braces_breaks_the_parser(pattern: str) -> None:
    try:
        names = expand_braces(pattern)
    except DataError:
        return
    assert all("{" not in name and "}" not in name for name in names)


def test_a_file_whose_name_has_braces_is_itself(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a{1}.tar", {"a.png": picture()})
    assert find_shards(str(path), "--data_path") == (path,)


def test_hidden_members_are_no_images_and_the_others_are_counted(tmp_path: Path) -> None:
    members = {
        "./a/1.png": picture(),
        "a/._1.png": b"",
        "__MACOSX/a/1.png": b"",
        "._a.cls": b"none",
        "a/1.json": b"{}",
        "a/2.heic": b"",
    }
    path = write_tar(tmp_path / "x.tar", members)
    source = open_training_source(str(path))
    assert source.names == ("a/1.png",)
    assert source.describe() == (
        f"1 shards, the first {path}, 1 images in 1 classes; passed over: 3 hidden or of the system"
        f" ({show(f'{path}/a/._1.png')}), 1 .json ({show(f'{path}/a/1.json')}),"
        f" 1 .heic ({show(f'{path}/a/2.heic')})"
    )


def change_header(content: bytes, at: int, start: int, field: bytes) -> bytes:
    """The header at byte `at` with a field written from `start`, and its checksum right again."""
    header = bytearray(content[at : at + 512])
    header[start : start + len(field)] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return content[:at] + bytes(header) + content[at + 512 :]


SIZE_AT, KIND_AT, FIELD = 124, 156, 12  # where a header has its size, its kind; bytes of the size
HUGE = b"\x80" + (2**70).to_bytes(11, "big")
NEGATIVE = (-1024).to_bytes(12, "big", signed=True)


@pytest.mark.parametrize(
    "size", [HUGE, NEGATIVE, b"77777777777\0", b"\x80" + (8 * 2**30).to_bytes(11, "big")]
)
@pytest.mark.parametrize("kind", [b"0", b"x", b"g", b"L", b"K", b"S", b"5", b"?"])
def test_no_size_in_a_header_costs_time_or_memory(size: bytes, kind: bytes, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": picture(), "b.png": picture()})
    content = change_header(path.read_bytes(), 1024, SIZE_AT, size)
    path.write_bytes(change_header(content, 1024, KIND_AT, kind))
    with pytest.raises(DataError, match=r"a\.tar .*(truncated|sparse)") as caught:
        open_training_source(str(path))
    assert "\n" not in str(caught.value)


def write_pax(path: Path, **records: str) -> Path:
    """A shard whose second member has these extended headers."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, headers in (("a.png", {}), ("b.png", records)):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = len(picture()), headers
            tar.addfile(member, io.BytesIO(picture()))
    return path


@pytest.mark.parametrize(
    "records",
    [
        {"size": "-512"},
        {"size": str(2**70)},
        {"size": "9" * 5000},
        {"GNU.sparse.map": "a,b"},
        {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"},
        {"GNU.sparse.size": "x", "GNU.sparse.map": "0,1"},
        {"comment": "x" * 2**17},
    ],
)
def test_no_extended_header_does_either(records: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.tar ") as caught:
        open_training_source(str(write_pax(tmp_path / "a.tar", **records)))
    assert "\n" not in str(caught.value)


def test_headers_before_headers_end_in_one_line(tmp_path: Path) -> None:
    header = tarfile.TarInfo("name")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 0
    block = header.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(block * 5000)
    with pytest.raises(DataError, match=r"a\.tar is not a tar file"):
        open_training_source(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_a_label_must_be_a_small_file(kind: bytes, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.png", "a.cls"):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (kind, "a.cls") if name == "a.cls" else (b"0", "")
            member.size = len(picture()) if name == "a.png" else 0
            tar.addfile(member, io.BytesIO(picture()))
    with pytest.raises(DataError, match=r"a\.cls must hold a class number"):
        open_images(str(tmp_path / "a.tar"))


@pytest.mark.parametrize("number", [b"202311151234", b"9" * 30])
def test_a_number_that_is_no_class_is_refused(number: bytes, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"x.png": picture(), "x.cls": number})
    with pytest.raises(DataError, match=r"class numbers go up to \d+, beyond 999999"):
        open_images(str(path))


@pytest.mark.parametrize(
    "pattern",
    ["{0..999999999999}.tar", "{0..99999}{0..99999}.tar", "{a,b}" * 21, "{a,b}" * 5000],
)
def test_a_pattern_of_too_many_shards_is_refused(pattern: str) -> None:
    with pytest.raises(DataError, match="names more than 1000000 shards"):
        expand_braces(pattern)


def test_what_is_no_regular_file_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DataError, match=r"a\.tar is no file"):
        open_training_source(str(tmp_path / "a.tar"))


@given(
    flips=st.lists(
        st.tuples(st.integers(0, 1), st.integers(0, 511), st.integers(0, 255)), max_size=9
    )
)
def test_no_damaged_header_breaks_the_scan(
    flips: list[tuple[int, int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.tar"
    content = bytearray(write_tar(path, {"a.png": picture(), "b.cls": b"1"}).read_bytes())
    for member, start, level in flips:
        content = bytearray(change_header(bytes(content), member * 1024, start, bytes([level])))
    path.write_bytes(content)
    try:
        found = shards.scan_shard(shard := LocalShard(path), shard.stamp()).images
    except DataError:
        return
    assert all(0 < image.offset + image.size <= len(content) for image in found)
