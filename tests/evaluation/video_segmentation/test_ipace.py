"""Driving runs are cut where labels are due; only the folder's own name leads from frames to
labels."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dino.errors import DataError
from dino.evaluation.video_segmentation.davis import Clip
from dino.evaluation.video_segmentation.ipace import open_runs


def write_run(
    run: Path, count: int = 5, labelled: range = range(0, 5, 2), size: tuple[int, int] = (30, 20)
) -> Path:
    """Gray frames named like time stamps, and label maps for some of them."""
    for part in ("image", "segmentation"):
        (run / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.new("RGB", size, (90, 80, 70)).save(run / "image" / f"162548113{number}.jpg")
    for number in labelled:
        Image.new("P", size, 26).save(run / "segmentation" / f"162548113{number}.png")
    return run


def describe(clips: list[Clip]) -> list[tuple[str, int, str]]:
    return [(clip.name, len(clip.frames), clip.labels.stem[-1]) for clip in clips]


def test_a_run_is_cut_where_labels_are_due(tmp_path: Path) -> None:
    clips = open_runs(str(write_run(tmp_path / "run")), 2)
    assert describe(clips) == [("run", 2, "0"), ("run", 2, "2"), ("run", 1, "4")]
    assert [path.stem[-1] for clip in clips for path in clip.frames] == list("01234")
    assert describe(open_runs(str(tmp_path / "run"), 50)) == [("run", 5, "0")]


@given(count=st.integers(1, 30), interval=st.integers(1, 40))
def test_every_frame_is_in_one_clip(
    tmp_path_factory: pytest.TempPathFactory, count: int, interval: int
) -> None:
    run = tmp_path_factory.mktemp("run", numbered=True)
    (run / "image").mkdir()
    for number in range(count):
        (run / "image" / f"{number:03}.jpg").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dino.evaluation.video_segmentation.ipace.check_clips", list)
        clips = open_runs(str(run), interval)
    assert [path for clip in clips for path in clip.frames] == sorted((run / "image").iterdir())
    assert {len(clip.frames) for clip in clips[:-1]} <= {interval} and 1 <= len(
        clips[-1].frames
    ) <= interval
    assert [clip.labels.stem for clip in clips] == [
        f"{start:03}" for start in range(0, count, interval)
    ]


def test_runs_of_a_folder_come_by_name_and_other_folders_do_not_matter(tmp_path: Path) -> None:
    write_run(tmp_path / "b")
    write_run(tmp_path / "a", count=1)
    (tmp_path / "notes").mkdir()
    assert describe(open_runs(str(tmp_path), 50)) == [("a", 1, "0"), ("b", 5, "0")]


def test_frames_come_by_number_and_hidden_folders_are_no_runs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", count=3, labelled=range(1))
    for old, new in enumerate((1, 2, 10)):
        (run / "image" / f"162548113{old}.jpg").rename(run / "image" / f"{new}.jpg")
    (run / "segmentation" / "1625481130.png").rename(run / "segmentation" / "1.png")
    (tmp_path / ".ipynb_checkpoints" / "image").mkdir(parents=True)
    (clip,) = open_runs(str(tmp_path), 50)
    assert [path.stem for path in clip.frames] == ["1", "2", "10"]


def test_the_words_image_and_jpg_elsewhere_in_the_path_stay(tmp_path: Path) -> None:
    """The fork replaces both in the whole path."""
    root = tmp_path / "image_jpg" / "image"
    run = write_run(root / "run_image.jpg", count=1)
    assert [clip.labels for clip in open_runs(str(root), 50)] == [
        run / "segmentation" / "1625481130.png"
    ]


def test_a_run_given_as_the_working_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_run(tmp_path / "run"))
    assert open_runs(".", 50)[0].name == "run"


def test_links_go_by_their_own_names(tmp_path: Path) -> None:
    run = write_run(tmp_path / "elsewhere" / "run", count=1)
    (tmp_path / "runs").mkdir()
    for name in ("a", "b"):
        (tmp_path / "runs" / name).symlink_to(run)
    assert describe(open_runs(str(tmp_path / "runs"), 50)) == [("a", 1, "0"), ("b", 1, "0")]


def test_missing_labels_are_named_where_they_are_due(tmp_path: Path) -> None:
    write_run(tmp_path / "run", labelled=range(0, 3, 2))
    with pytest.raises(
        DataError,
        match=r"run/segmentation/1625481134.png does not exist; .* of .*image/1625481134.jpg",
    ):
        open_runs(str(tmp_path), 2)
    assert len(open_runs(str(tmp_path), 5)) == 1


def test_a_size_of_its_own_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    Image.new("RGB", (32, 20)).save(run / "image" / "1625481133.jpg")
    with pytest.raises(
        DataError,
        match=r"image/1625481133.jpg must have the size of .*1625481132.png, 30x20 pixels \(got 32x20\)",
    ):
        open_runs(str(tmp_path), 2)


def test_no_frames_no_run_and_no_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "image").mkdir(parents=True)
    (tmp_path / "half" / "segmentation").mkdir(parents=True)
    (tmp_path / "none").mkdir()
    for path, named in (
        ("run", "image holds no frame"),
        ("half", "half/image does not exist"),
        ("none", "no run"),
    ):
        with pytest.raises(DataError, match=named):
            open_runs(str(tmp_path / path), 50)
    with pytest.raises(DataError, match="nowhere does not exist"):
        open_runs(str(tmp_path / "nowhere"), 50)
    with pytest.raises(DataError, match="`data_path` is missing"):
        open_runs(None, 50)


def test_the_real_runs_are_found(shared_data: Path) -> None:
    found = [(clip.name, len(clip.frames)) for clip in open_runs(str(shared_data / "ipace"), 50)]
    name = "run_2021-07-05_roundabout"
    assert found == [(name, 50), (name, 25), ("run_2021-07-06_shadow", 40)]
