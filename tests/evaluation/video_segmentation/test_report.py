"""The command: tables, files, exit codes, for both layouts."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import compute_segmentation_metrics
from dino.cli.session import exit_code
from dino.evaluation.video_segmentation.report import report_davis
from tests.label_folders import make_davis, make_predictions, make_runs, save_labels

RIGHT = np.zeros((20, 30), np.uint8)
RIGHT[4:12, 5:15] = 1
HALF = RIGHT.copy()
HALF[4:12, 10:15] = 0
NOTHING = np.zeros_like(RIGHT)


def run(*words: object) -> int:
    return exit_code(lambda: compute_segmentation_metrics.main(list(map(str, words))))


def davis(folder: Path) -> tuple[object, ...]:
    root = make_davis(
        folder / "davis", {"cat": [RIGHT] * 5, "dog": [RIGHT + 2 * (np.eye(20, 30) > 0)] * 3}
    )
    out = make_predictions(folder / "out", {"cat": [HALF] * 5, "dog": [RIGHT] * 3})
    return ("--dataset_path", root, "--prediction_path", out)


def driving(folder: Path) -> tuple[object, ...]:
    root = make_runs(folder / "runs", {"run_a": [RIGHT] * 5, "run_b": [RIGHT] * 2})
    out = make_predictions(
        folder / "out", {"run_a": [RIGHT, HALF, RIGHT, HALF, RIGHT], "run_b": [RIGHT, NOTHING]}
    )
    return ("--dataset_path", root, "--prediction_path", out)


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def table(text: str, head: str) -> list[list[str]]:
    """The lines of a printed table, by the first word of its head, as cells; its columns must be
    aligned."""
    lines = text.splitlines()
    start = next(number for number, line in enumerate(lines) if line.split()[:1] == [head])
    width = len(lines[start])
    end = next((n for n, line in enumerate(lines[start:], start) if len(line) != width), len(lines))
    return [line.split() for line in lines[start:end]]


def test_davis_prints_objects_sequences_and_their_mean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*davis(tmp_path), "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json") == 0
    text = capsys.readouterr().out
    rows = {" ".join(row[:-8]): row[-8:] for row in table(text, "name")[1:]}
    assert list(rows) == ["cat_1", "cat", "dog_1", "dog_2", "dog_3", "dog", "mean over objects"]
    assert (
        rows["cat_1"][0] == "3"
        and rows["cat_1"][2] == "0.5000"
        and rows["mean over objects"][0] == "4"
    )
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["layout"] == "davis" and values["frames"] == 4
    objects = values["objects"]
    assert objects["cat_1"]["J-Mean"] == 0.5 and objects["cat_1"]["J-Recall"] == 0.0
    for name in ("J-Mean", "F-Recall", "J&F-Mean"):
        assert values[name] == pytest.approx(
            np.mean([figures[name] for figures in objects.values()])
        )
        of_dog = [figures[name] for key, figures in objects.items() if key.startswith("dog")]
        assert values["sequences"]["dog"][name] == pytest.approx(np.mean(of_dog))
    assert values["J&F-Mean"] == pytest.approx((values["J-Mean"] + values["F-Mean"]) / 2)
    assert f"DAVIS 2017: J&F-Mean {values['J&F-Mean']:.4f}" in text
    written = {row["name"]: row for row in read_rows(tmp_path / "a.csv")}
    assert float(written["dog_2"]["F-Mean"]) == objects["dog_2"]["F-Mean"]
    assert float(written["mean over objects"]["J-Mean"]) == values["J-Mean"]


def test_labels_that_do_not_exist_are_not_scored_and_a_line_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = RIGHT + 199 * (HALF > 0)
    words = (
        "--dataset_path",
        make_davis(tmp_path / "davis", {"cat": [labels] * 3, "dog": [RIGHT] * 3}),
    )
    words += (
        "--prediction_path",
        make_predictions(tmp_path / "out", {"cat": [RIGHT] * 3, "dog": [RIGHT] * 3}),
    )
    assert run(*words, "--json", tmp_path / "a.json") == 0
    values = json.loads((tmp_path / "a.json").read_text())
    assert list(values["objects"]) == ["cat_1", "cat_200", "dog_1"]
    assert values["objects"]["cat_200"]["J-Mean"] == 0 and values["J-Mean"] == pytest.approx(0.5)
    printed = capsys.readouterr().out
    assert "cat: scored are the 2 labels that exist, 1, 200; davis2017-evaluation" in printed
    assert "dog: scored" not in printed


def test_the_score_of_predictions_just_written_is_that_of_the_command(tmp_path: Path) -> None:
    words = davis(tmp_path)
    assert run(*words, "--json", tmp_path / "a.json") == 0
    values = json.loads((tmp_path / "a.json").read_text())
    assert {"layout": "davis", **report_davis(tmp_path / "davis", tmp_path / "out")} == values


def test_driving_prints_runs_classes_and_the_total(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*driving(tmp_path), "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json") == 0
    text = capsys.readouterr().out
    values = json.loads((tmp_path / "a.json").read_text())
    ious = {"0": 7 * 520 / (7 * 520 + 2 * 40 + 80), "1": (4 * 80 + 2 * 40) / (7 * 80)}
    assert values["classes"] == pytest.approx(ious)
    assert values["mean_iou"] == pytest.approx(sum(ious.values()) / 2)
    assert values["accuracy"] == pytest.approx(1 - 160 / (7 * 600))
    assert values["frames"] == 7 and values["runs"]["run_b"]["classes"]["1"] == 0.5
    assert table(text, "class")[1:] == [
        ["0", f"{520 / 600:.4f}", f"{ious['0']:.4f}"],
        ["1", f"{80 / 600:.4f}", f"{ious['1']:.4f}"],
    ]
    assert [row[:3] for row in table(text, "run")[1:]] == [
        ["run_a", "5", "2"],
        ["run_b", "2", "2"],
        ["total", "7", "2"],
    ]
    assert f"driving: mean IoU {values['mean_iou']:.4f}" in text
    rows = {(row["run"], row["class"]): row for row in read_rows(tmp_path / "a.csv")}
    assert float(rows["run_b", "1"]["IoU"]) == 0.5 and rows["total", "mean"]["frames"] == "7"


def test_refreshed_frames_count_with_a_line_that_says_so_or_not_at_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*driving(tmp_path), "--refresh_label_interval", 2, "--json", tmp_path / "a.json")
    assert run(*words) == 0
    assert "4 frames, every 2-th of a run, are counted" in capsys.readouterr().out
    assert run(*words, "--skip_refreshed") == 0
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["frames"] == 3 and values["classes"]["1"] == pytest.approx(80 / 240)
    assert "are counted" not in capsys.readouterr().out


def test_skipping_by_another_interval_than_that_of_the_predictions_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = (*driving(tmp_path), "--skip_refreshed", "--refresh_label_interval")
    assert run(*words, 3) == 0  # run_a 1 2 4, run_b 1
    assert "2 counted frames have predictions equal to their true labels" in capsys.readouterr().out
    assert run(*words, 2) == 0
    assert "predictions equal to their true labels" not in capsys.readouterr().out


def test_frames_without_labels_are_counted_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = driving(tmp_path)
    (tmp_path / "runs/run_a/segmentation/00001.png").unlink()
    assert run(*words) == 0
    assert "1 frames have no true labels and are not scored" in capsys.readouterr().out


def test_a_class_that_is_ignored_has_no_row(tmp_path: Path) -> None:
    assert run(*driving(tmp_path), "--ignore_label", 0, "--json", tmp_path / "a.json") == 0
    values = json.loads((tmp_path / "a.json").read_text())
    assert (
        values["classes"] == pytest.approx({"1": 400 / 560})
        and values["mean_iou"] == values["classes"]["1"]
    )


def test_ignoring_all_gives_null(tmp_path: Path) -> None:
    words = driving(tmp_path)
    save_labels(tmp_path / "runs/run_b/segmentation/00000.png", NOTHING)
    save_labels(tmp_path / "runs/run_b/segmentation/00001.png", NOTHING)
    make_predictions(tmp_path / "out", {"run_b": [NOTHING] * 2})
    assert run(*words, "--ignore_label", 0, "--json", tmp_path / "a.json") == 0
    assert json.loads((tmp_path / "a.json").read_text())["runs"]["run_b"]["mean_iou"] is None


@pytest.mark.parametrize("flag", ["--csv", "--json"])
def test_files_that_cannot_be_written_are_named_before_the_work(
    flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*davis(tmp_path), flag, tmp_path / "none" / "a.txt") == 2
    printed = capsys.readouterr()
    assert (
        f"{flag} {tmp_path}/none/a.txt cannot be written" in printed.err
        and "J&F-Mean" not in printed.out
    )


def test_one_of_several_processes_scores(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch.distributed.launch starts them, with the flag that older ones add."""
    words = davis(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        assert run(*words, f"--local-rank={rank}", "--json", tmp_path / f"{rank}.json") == 0
    assert (tmp_path / "0.json").exists() and not (tmp_path / "1.json").exists()
    assert capsys.readouterr().out.count("DAVIS 2017:") == 1


def test_void_is_drawn_as_wrong_for_it_counts_as_background(tmp_path: Path) -> None:
    words = davis(tmp_path)
    void = RIGHT.copy()
    void[12:] = 255
    save_labels(tmp_path / "davis/Annotations/480p/cat/00001.png", void)
    make_predictions(tmp_path / "out", {"cat": [np.ones_like(RIGHT)] * 5})
    assert run(*words, "--pictures", tmp_path) == 0
    with Image.open(tmp_path / "cat" / "00001.jpg") as picture:
        error = np.asarray(picture).astype(int)[-20:, -30:]
    assert (
        abs(error[14:, 2:] - (255, 0, 0)).max() < 30
        and abs(error[6:10, 7:13] - (255, 0, 0)).max() > 100
    )


def test_pictures_are_drawn_for_every_run(tmp_path: Path) -> None:
    assert run(*driving(tmp_path), "--pictures", tmp_path / "pictures") == 0
    found = {
        path.relative_to(tmp_path / "pictures").as_posix()
        for path in (tmp_path / "pictures").rglob("*.*")
    }
    frames = {f"run_a/{n:05}.jpg" for n in range(5)} | {f"run_b/{n:05}.jpg" for n in range(2)}
    assert found == frames | {f"run_{run}.{ending}" for run in "ab" for ending in ("png", "mp4")}


def test_real_sequences_as_the_benchmark_prints_them(
    shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        run(
            "--data_path",
            shared_data / "davis",
            "--prediction_path",
            shared_data / "davis_results" / "osvos",
        )
        == 0
    )
    assert (
        "DAVIS 2017: J&F-Mean 0.8396  J-Mean 0.8105  J-Recall 0.8615  J-Decay 0.1825"
        in capsys.readouterr().out
    )


def test_real_runs_predicted_by_their_labels(shared_data: Path, tmp_path: Path) -> None:
    for folder in (shared_data / "ipace").iterdir():
        os.symlink(folder / "segmentation", tmp_path / folder.name)
    words = ("--dataset_path", shared_data / "ipace", "--prediction_path", tmp_path)
    assert run(*words, "--json", tmp_path / "a.json", "--skip_refreshed") == 0
    values = json.loads((tmp_path / "a.json").read_text())
    assert values["frames"] == 112 and values["classes"] == {"3": 1.0, "26": 1.0}


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "--dataset_path is missing"),
        (("--dataset_path", "nowhere"), "--dataset_path nowhere is not a folder"),
        (("--dataset_path", "davis"), "--prediction_path is missing"),
        (
            ("--dataset_path", "davis", "--prediction_path", "none"),
            "--prediction_path none is not a folder",
        ),
        (("--dataset_path", "out", "--prediction_path", "out"), "has neither Annotations"),
        (
            ("--dataset_path", "davis", "--prediction_path", "out", "--layout", "driving"),
            "has no RUN/image",
        ),
        (
            ("--dataset_path", "davis", "--prediction_path", "out", "--ignore_label", "0"),
            "--ignore_label is only for driving",
        ),
        (
            ("--dataset_path", "davis", "--prediction_path", "out", "--csv", "none/a.csv"),
            "none/a.csv cannot be written",
        ),
        (
            ("--dataset_path", "davis", "--prediction_path", "out", "--pictures", "a.txt"),
            "--pictures a.txt cannot be",
        ),
    ],
)
def test_wrong_words_end_with_2_and_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    text: str,
) -> None:
    davis(tmp_path)
    (tmp_path / "a.txt").touch()
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_a_label_beyond_the_classes_ends_with_2_and_names_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = driving(tmp_path)
    save_labels(tmp_path / "out/run_b/00001.png", RIGHT * 27)
    assert run(*words) == 2
    assert "out/run_b/00001.png must hold labels 0 to 26 (got 27)" in capsys.readouterr().err


def test_skipping_all_frames_of_a_run_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*driving(tmp_path), "--skip_refreshed", "--refresh_label_interval", 1) == 2
    assert "run_a has only frames" in capsys.readouterr().err


def test_pictures_without_images_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = davis(tmp_path)
    (tmp_path / "davis/JPEGImages/480p/dog/00001.jpg").unlink()
    assert run(*words, "--pictures", tmp_path / "pictures") == 2
    assert "--pictures needs the picture of" in capsys.readouterr().err
    assert not (tmp_path / "pictures").exists()


def test_predictions_of_nothing_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = davis(tmp_path)
    make_predictions(tmp_path / "out", {"bird": [RIGHT]})
    assert run(*words) == 0
    assert "not scored, because the data set lacks the names: bird" in capsys.readouterr().out
