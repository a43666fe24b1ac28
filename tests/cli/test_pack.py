"""The packing command: equal bytes whenever it is run and however often it is stopped."""

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dino.cli.pack import main
from dino.data import packing
from dino.data.decode import read_image, read_size
from dino.data.packing import scale_picture
from dino.data.sources import open_training_source
from dino.errors import DataError, OptionError
from tests.tables import write_parquet


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for number in range(7):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{'long' * 30}{number}ü.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def pack(images: Path, out: Path, *words: str) -> dict[str, bytes]:
    """Run the command; gives the files it leaves."""
    main([str(images), str(out), "--shard_size", "3", *words])
    return {path.name: path.read_bytes() for path in sorted(out.iterdir())}


def test_shards_hold_the_files_as_they_are(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = pack(images, tmp_path / "out", "--json", "-")
    assert list(files) == [*(f"photos-{number:06}.tar" for number in range(3)), "photos.json"]
    text = capsys.readouterr().out
    assert json.loads(text.splitlines()[-1])["images"] == 7 and "packing photos  7/7" in text
    source, folder = open_training_source(str(tmp_path / "out")), open_training_source(str(images))
    assert (source.names, source.labels) == (folder.names, folder.labels)
    for index in range(7):
        file = source.file(index)
        assert not isinstance(file, Path) and file.read() == folder.path(index).read_bytes()
    with tarfile.open(tmp_path / "out" / "photos-000000.tar") as tar:
        assert [Path(name).suffix for name in tar.getnames()] == [".jpg", ".cls"] * 3
        assert {(member.mtime, member.uid, member.mode) for member in tar} == {(0, 0, 0o644)}


def test_a_second_run_writes_nothing(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pack(images, tmp_path / "out")
    monkeypatch.setattr(packing, "_write_shard", None)
    assert pack(images, tmp_path / "out") == files


@pytest.mark.parametrize("stop", range(1, 8))
def test_a_run_that_was_stopped_goes_on_to_equal_bytes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int
) -> None:
    expected, plain, seen = pack(images, tmp_path / "whole"), packing._add, []

    def full(tar: tarfile.TarFile, name: str, content: bytes) -> None:
        seen.append(name)
        if len(seen) == 2 * stop:
            raise OSError(28, "No space left on device")
        plain(tar, name, content)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_add", full)
        with pytest.raises(
            DataError, match="No space left on device; run the same command again to continue"
        ):
            pack(images, tmp_path / "out")
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {
        "photos.json",
        *(f"photos-{number:06}.tar" for number in range((stop - 1) // 3)),
    }
    assert pack(images, tmp_path / "out") == expected


def test_what_a_killed_run_left_is_written_over(images: Path, tmp_path: Path) -> None:
    expected = pack(images, tmp_path / "whole")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photos-000000.tar.partial").write_bytes(b"half")
    assert pack(images, tmp_path / "out") == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--shard_size", "2"], "shard_size was 3 and is now 2"),
        (["--shorter_side", "8"], "shorter_side was None and is now 8"),
    ],
)
def test_shards_packed_otherwise_are_not_added_to(
    images: Path, tmp_path: Path, words: list[str], text: str
) -> None:
    pack(images, tmp_path / "out")
    with pytest.raises(DataError, match=text):
        pack(images, tmp_path / "out", *words)


def test_shards_of_other_images_are_not_added_to(images: Path, tmp_path: Path) -> None:
    pack(images, tmp_path / "out")
    next(images.rglob("*.jpg")).unlink()
    with pytest.raises(DataError, match="images was 7 and is now 6"):
        pack(images, tmp_path / "out")
    (tmp_path / "out" / "photos.json").unlink()
    with pytest.raises(DataError, match="unknown origin"):
        pack(images, tmp_path / "out")


def test_larger_pictures_are_scaled_and_smaller_ones_kept(images: Path, tmp_path: Path) -> None:
    Image.new("RGB", (10, 9)).save(images / "a" / "small.png")
    (images / "b" / "broken.jpg").write_bytes(b"no picture")
    files = pack(images, tmp_path / "out", "--shorter_side", "15")
    assert pack(images, tmp_path / "again", "--shorter_side", "15") == files
    source, folder = open_training_source(str(tmp_path / "out")), open_training_source(str(images))
    assert source.names == folder.names
    for index, name in enumerate(source.names):
        if "long" in name:
            assert source.read_size(index) == (15, 20)
        else:
            file = source.file(index)
            assert not isinstance(file, Path) and file.read() == folder.path(index).read_bytes()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_every_mode_can_be_scaled(mode: str, kind: str, tmp_path: Path) -> None:
    if (mode, kind) == ("CMYK", "png"):
        pytest.skip("there is no such file")
    out = io.BytesIO()
    Image.new(mode, (40, 31)).save(out, kind)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(scale_picture(out.getvalue(), 10))
    assert read_image(path).shape == (3, 10, 13)


def test_scaling_is_pillows_and_keeps_the_orientation(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    image, out = Image.fromarray(pixels), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(out, "png", exif=exif)
    (tmp_path / "a.png").write_bytes(scale_picture(out.getvalue(), 20))
    assert read_size(tmp_path / "a.png") == (30, 20)
    expected = np.asarray(image.resize((30, 20), Image.Resampling.BICUBIC))
    assert np.array_equal(
        read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), np.rot90(expected, -1)
    )


def test_wrong_command_lines_end_before_any_work(images: Path, tmp_path: Path) -> None:
    for words in ([], [str(images)]):
        with pytest.raises(
            OptionError, match="name the folder of images and the folder for shards"
        ):
            main(words)
    with pytest.raises(DataError, match="does not exist"):
        main([str(tmp_path / "gone"), str(tmp_path / "out")])
    os.makedirs(tmp_path / "set" / "val")
    (tmp_path / "set" / "train").mkdir()
    with pytest.raises(OptionError, match="holds splits; pack each split separately"):
        main([str(tmp_path / "set"), str(tmp_path / "out")])
    for split in ("train", "test"):
        write_parquet(tmp_path / "hub" / "data", open_training_source(str(images)), split)
    pattern = r"'.*/hub/data/train-0000\*\.parquet' OUT/train"
    with pytest.raises(
        OptionError, match=f"each split separately: python -m dino.data.pack {pattern}"
    ):
        main([str(tmp_path / "hub"), str(tmp_path / "out")])


def test_tables_are_packed_as_their_folder(images: Path, tmp_path: Path) -> None:
    write_parquet(tmp_path / "photos.hf", open_training_source(str(images)))
    shards = pack(images, tmp_path / "one")
    tables = pack(tmp_path / "photos.hf" / "train-0000*.parquet", tmp_path / "two")
    assert [*tables.values()][:3] == [*shards.values()][:3]


@pytest.mark.parametrize("text", ["[" * 200_000, "5", "[[1]]", "nonsense", "null"])
def test_a_note_that_is_none_is_one_line(images: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "photos.json").write_text(text)
    with pytest.raises(DataError, match=r"photos\.json is damaged: .*; pack into an empty folder"):
        pack(images, tmp_path / "out")
