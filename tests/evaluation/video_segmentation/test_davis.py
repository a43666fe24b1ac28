"""DAVIS's layout is read or refused by name, and frames are scaled as the original scales them."""

import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dino.data.decode import read_image
from dino.data.label_maps import read_label_map
from dino.errors import DataError
from dino.evaluation.video_segmentation.davis import (
    DAVIS_PALETTE,
    FRAME_NORMALIZATION,
    compute_frame_size,
    drop_void,
    list_frames,
    list_truths,
    open_davis,
    read_split,
    resize_frame,
)
from dino.evaluation.video_segmentation.ipace import DRIVING_PALETTE

SEQUENCES = {"ant": 3, "bee": 1}


def write_davis(root: Path, size: tuple[int, int] = (30, 20)) -> Path:
    """Gray frames and empty label maps of two sequences; `size` is width and height."""
    (root / "ImageSets" / "2017").mkdir(parents=True)
    (root / "ImageSets" / "2017" / "val.txt").write_text("bee\nant\n\n")
    for name, count in SEQUENCES.items():
        frames, labels = (root / part / "480p" / name for part in ("JPEGImages", "Annotations"))
        for folder in (frames, labels):
            folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", size, (90, 80, 70)).save(frames / f"{number:05}.jpg")
        Image.new("P", size).save(labels / "00000.png")
    return root


def test_sequences_come_in_the_order_of_the_list_and_frames_in_that_of_their_names(
    tmp_path: Path,
) -> None:
    root = write_davis(
        tmp_path / "JPEGImages.jpg"
    )  # no part of the path but the layout's own is replaced
    bee, ant = open_davis(str(root))
    assert (bee.name, ant.name) == ("bee", "ant")
    assert [path.name for path in ant.frames] == ["00000.jpg", "00001.jpg", "00002.jpg"]
    assert (
        ant.labels == root / "Annotations" / "480p" / "ant" / "00000.png"
        and ant.palette == DAVIS_PALETTE
    )


def test_the_real_sequences_are_found(shared_data: Path) -> None:
    found = {clip.name: len(clip.frames) for clip in open_davis(str(shared_data / "davis"))}
    assert found == {"blackswan": 50, "car-shadow": 40, "dog": 60, "horsejump-high": 50}


def remove(*parts: str) -> Callable[[Path], None]:
    return lambda root: root.joinpath(*parts).unlink()


def enlarge(*parts: str) -> Callable[[Path], None]:
    return lambda root: Image.new("P" if parts[-1].endswith("png") else "RGB", (31, 20)).save(
        root.joinpath(*parts)
    )


def empty_list(root: Path) -> None:
    (root / "ImageSets" / "2017" / "val.txt").write_text("\n")


def name_instead(names: str) -> Callable[[Path], None]:
    return lambda root: (root / "ImageSets" / "2017" / "val.txt").write_text(names) and None


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (remove("ImageSets", "2017", "val.txt"), r"val.txt, the list of sequences, cannot be read"),
        (empty_list, r"val.txt names no sequence"),
        (name_instead("cow"), r"JPEGImages/480p/cow does not exist"),
        (name_instead("ant\nbee\nant"), r"val.txt names a sequence twice: ant"),
        (
            name_instead("ant\n../bee"),
            r"val.txt names \.\./bee; a sequence must be a folder name",
        ),
        (name_instead(".."), r"val.txt names \.\.; a sequence must be a folder name"),
        (remove("JPEGImages", "480p", "bee", "00000.jpg"), r"JPEGImages/480p/bee holds no frame"),
        (
            remove("Annotations", "480p", "ant", "00000.png"),
            r"ant/00000.png does not exist; .* labels of .*00000.jpg",
        ),
        (
            enlarge("JPEGImages", "480p", "ant", "00002.jpg"),
            r"ant/00002.jpg must have the size of .*00000.png, 30x20 pixels \(got 31x20\)",
        ),
        (
            enlarge("Annotations", "480p", "ant", "00000.png"),
            r"ant/00000.jpg must have the size of .*00000.png, 31x20 pixels \(got 30x20\)",
        ),
    ],
)
def test_what_is_wrong_is_named_before_the_work(
    damage: Callable[[Path], None], named: str, tmp_path: Path
) -> None:
    root = write_davis(tmp_path)
    damage(root)
    with pytest.raises(DataError, match=named):
        open_davis(str(root))


def test_frames_come_by_number_and_hidden_files_are_none(tmp_path: Path) -> None:
    root = write_davis(tmp_path)
    frames, labels = (root / part / "480p" / "ant" for part in ("JPEGImages", "Annotations"))
    for old, new in enumerate((1, 2, 10)):
        (frames / f"{old:05}.jpg").rename(frames / f"{new}.jpg")
        Image.new("P", (30, 20)).save(labels / f"{new}.png")
    (labels / "00000.png").unlink()
    (frames / "._1.jpg").write_bytes(b"of macOS")
    (ant,) = (clip for clip in open_davis(str(root)) if clip.name == "ant")
    assert [path.name for path in ant.frames] == ["1.jpg", "2.jpg", "10.jpg"]
    assert ant.labels.name == "1.png"
    assert [path.name for path in list_truths(root, "ant")] == ["1.png", "2.png", "10.png"]


def test_lists_of_any_content_are_read_or_refused_in_bounded_time(tmp_path: Path) -> None:
    path = write_davis(tmp_path) / "ImageSets" / "2017" / "val.txt"
    path.write_bytes(b"\xef\xbb\xbfbee\r\nant\r\n")  # as editors of Windows save it
    assert read_split(tmp_path) == ["bee", "ant"]
    names = [str(number) for number in range(100_000)]
    path.write_text(" ".join(names))
    assert read_split(tmp_path) == names
    for content, named in (
        (b"a" * 5000, r"val.txt names a{80}\.\.\.;"),
        (b"c\0w", r"val.txt names c\?w;"),
        (b"a " * 600_000, "cannot be read: it has more than 1048576 bytes"),
        (b"\xff\xfec\0o\0w\0", "cannot be read: 'utf-8' codec"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=named):
            read_split(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match="cannot be read: it is not a regular file"):
        read_split(tmp_path)


def test_a_picture_of_another_ending_is_named_in_a_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_davis(tmp_path) / "JPEGImages" / "480p" / "ant"
    assert len(open_davis(str(tmp_path))) == 2 and not caplog.records
    (folder / "00001.jpg").rename(folder / "00001.JPG")
    (folder / "notes.txt").touch()
    assert [path.name for path in list_frames(folder)] == ["00000.jpg", "00002.jpg"]
    assert caplog.messages == [f"00001.JPG is ignored: frames of {folder} are *.jpg"]


@pytest.mark.parametrize("path", [None, ""])
def test_no_path_is_answered_by_what_it_should_hold(path: str | None) -> None:
    with pytest.raises(DataError, match=r"`data_path` is missing: .*val.txt"):
        open_davis(path)


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        *[
            (480, 854, (480, 832)),
            (854, 480, (832, 480)),
            (480, 910, (480, 896)),
            (1080, 1920, (480, 832)),
        ],
        *[
            (600, 960, (480, 768)),
            (67, 101, (480, 704)),
            (480, 480, (480, 448)),
            (481, 480, (448, 480)),
        ],
    ],
)
def test_the_short_side_becomes_480_and_the_long_one_a_multiple_of_64(
    height: int, width: int, expected: tuple[int, int]
) -> None:
    assert compute_frame_size(height, width) == expected
    # As read_frame has it: proportion first, then cut.
    long = int(((480 * max(height, width)) / min(height, width)) // 64 * 64)
    assert expected == ((long, 480) if height > width else (480, long))


def test_frames_are_opencvs_to_the_level(shared_data: Path) -> None:
    path = next(iter(sorted(shared_data.glob("davis/JPEGImages/480p/dog/*.jpg"))))
    expected = cv2.resize(cv2.imread(str(path)), (832, 480))[:, :, ::-1]
    found = resize_frame(read_image(path))
    assert found.dtype == torch.uint8
    np.testing.assert_array_equal(found.permute(1, 2, 0).numpy(), expected)


def test_one_channel_stays_one() -> None:
    assert resize_frame(torch.zeros(1, 20, 30, dtype=torch.uint8)).shape == (1, 480, 704)


def test_the_constants_are_the_originals() -> None:
    assert FRAME_NORMALIZATION.mean == (0.485, 0.456, 0.406)
    assert FRAME_NORMALIZATION.std == (0.228, 0.224, 0.225)


def colors(palette: bytes) -> list[tuple[int, ...]]:
    return [tuple(palette[index : index + 3]) for index in range(0, len(palette), 3)]


def test_the_palettes_have_a_color_for_every_byte() -> None:
    davis, driving = colors(DAVIS_PALETTE), colors(DRIVING_PALETTE)
    assert len(davis) == len(driving) == 256
    assert davis[:4] == [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0)]
    assert davis[8:10] == [(64, 0, 0), (192, 0, 0)] and davis[255] == (224, 224, 192)
    assert driving[0] == (220, 20, 60) and driving[26] == (0, 0, 0) and driving[27] == (27, 27, 27)


def test_the_palettes_are_those_of_the_data_sets(shared_data: Path) -> None:
    assert (
        read_label_map(next(shared_data.glob("davis/Annotations/480p/*/*.png"))).palette
        == DAVIS_PALETTE
    )
    assert (
        read_label_map(next(shared_data.glob("ipace/*/segmentation/*.png"))).palette
        == DRIVING_PALETTE
    )


def test_void_is_background_beside_objects_only() -> None:
    assert drop_void(np.array([[0, 3, 255]], np.uint8)).tolist() == [[0, 3, 0]]
    assert drop_void(np.array([[0, 3, 255]], np.uint8)).dtype == np.uint8
    assert drop_void(np.array([[0, 255]], np.uint8)).tolist() == [[0, 255]]
