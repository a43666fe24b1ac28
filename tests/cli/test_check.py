"""The whole command: what it says of bad and odd files, the list it leaves, its exit codes, and how
it is stopped."""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dino.cli.check import main
from dino.cli.session import exit_code
from dino.data import inspection
from dino.data.sources import open_images
from dino.errors import DataError, OptionError
from tests.running import hear_signals, make_images
from tests.tables import write_parquet

# What shared/data/broken holds, by its manifest; the damage in corrupt_scan.jpg is none that a
# decoder notices.
BROKEN = {
    "corrupt": {
        "html_404.jpg",
        "text.jpg",
        "zero_byte.jpg",
        *(f"truncated_{k}.jpg" for k in ("half", "header", "tail")),
    },
    "tiny": {
        "huge_aspect_10x4000.jpg",
        "huge_aspect_4000x10.jpg",
        "one_pixel.jpg",
        "one_pixel.png",
        "two_by_three.jpg",
    },
    "odd": {
        *(
            "alpha_la.png",
            "alpha_rgba.png",
            "palette_transparency.png",
            "gray_16bit.png",
            "rgb_16bit.png",
        ),
        *("bilevel.png", "cmyk.jpg", "animated.gif"),
    },
    "duplicate": {"ünïcode_日本語_фото.jpg"},
}


@pytest.fixture(autouse=True)
def keep_log_handlers() -> object:
    """The command sets up the log for a process of its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level


def check(*words: object) -> int:
    return exit_code(lambda: main([*map(str, words), "--num_workers", "0"]))


def names_in(result: dict) -> dict[str, set[str]]:
    return {
        kind: {one["name"] for one in found}
        for kind, found in result.items()
        if isinstance(found, list)
    }


@pytest.mark.parametrize("workers", [0, 2])
def test_every_bad_and_odd_file_is_found_and_the_rest_is_listed(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    folder, output = shared_data / "broken", tmp_path / "clean.txt"
    words = [
        str(folder),
        "--json",
        str(tmp_path / "r"),
        "--output",
        str(output),
        "--num_workers",
        str(workers),
    ]
    assert exit_code(lambda: main(words)) == 1
    result = json.loads((tmp_path / "r").read_text())
    assert names_in(result) == {**BROKEN, "unlistable": set()}
    left_out = BROKEN["corrupt"] | BROKEN["tiny"] | BROKEN["duplicate"]
    listed = open_images(str(output))
    everything = {path.name for path in folder.iterdir() if path.is_file()}
    assert {path.name for path in map(listed.path, range(len(listed)))} == everything - left_out
    assert (result["images"], result["listed"]) == (len(everything), len(listed))
    text = capsys.readouterr()
    assert f"checking  {len(everything)}/{len(everything)}" in text.out
    assert all(f"{kind}: {name}: " in text.out for kind, names in BROKEN.items() for name in names)
    assert (
        text.err.startswith("CheckFailed: 6 corrupt, 5 tiny, 8 odd, 1 duplicate of ")
        and text.err.count("\n") == 1
    )


def test_a_clean_list_passes_the_check(tmp_path: Path) -> None:
    make_images(tmp_path / "images", 5)
    shutil.copy(tmp_path / "images" / "003.png", tmp_path / "images" / "again.png")
    assert check(tmp_path / "images", "--output", tmp_path / "list.txt") == 1
    assert (tmp_path / "list.txt").read_text().split() == [
        f"images/{index:03}.png" for index in range(5)
    ]
    assert check("--data_path", tmp_path / "list.txt") == 0


def test_names_that_no_line_can_hold_are_told_and_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_images(tmp_path, 3)
    os.rename(tmp_path / "001.png", tmp_path / "one\ntwo.png")
    assert check(tmp_path, "--output", tmp_path / "list.txt") == 1
    assert (tmp_path / "list.txt").read_text().split() == ["000.png", "002.png"]
    text = capsys.readouterr()
    assert r"unlistable: 'one\ntwo.png': its name has a line break" in text.out
    assert "1 unlistable of 3 images" in text.err
    assert check(tmp_path) == 0  # without a list its name is no matter


@pytest.mark.parametrize(("name", "kind"), [("here", "folder"), ("list.png", "picture")])
def test_an_output_that_cannot_be_a_list_stops_before_the_work(
    tmp_path: Path, name: str, kind: str
) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(OptionError, match=f"is a {kind}; name a text file"):
        main([str(make_images(tmp_path / "images", 1)), "--output", str(tmp_path / name)])


def test_a_list_without_any_image_is_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_text("")
    assert check(tmp_path, "--output", tmp_path / "list.txt", "--json", tmp_path / "r") == 1
    text = capsys.readouterr()
    assert "corrupt: a.jpg: " in text.out and "none of the 1 images is clean" in text.out
    assert text.err.startswith("CheckFailed: 1 corrupt of 1 images")
    assert json.loads((tmp_path / "r").read_text())["listed"] == 0
    assert not (tmp_path / "list.txt").exists()


@pytest.mark.parametrize(
    ("words", "text"), [(["a", "b"], "'b' is one word too many"), ([], "`data_path` is missing")]
)
def test_words_that_are_too_many_or_missing_are_told(words: list[str], text: str) -> None:
    with pytest.raises((OptionError, DataError), match=text):
        main(words)


def test_a_worker_that_dies_ends_the_check_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_images(tmp_path / "images", 3)
    monkeypatch.setattr(
        inspection, "find_oddity", lambda path: os.kill(os.getpid(), signal.SIGKILL)
    )
    words = [str(folder), "--num_workers", "1", "--output", str(tmp_path / "list.txt")]
    assert exit_code(lambda: main(words)) == 2
    assert capsys.readouterr().err.startswith("DataError: a loader process died (")
    assert not (tmp_path / "list.txt").exists()


WAITING = """
import sys
from dino.cli.check import main
from dino.cli.session import exit_code
from dino.data import inspection

inspection.find_oddity = lambda path: open(sys.argv[2], "rb").read()  # waits for a writer
sys.exit(exit_code(lambda: main([sys.argv[1], "--num_workers", "2"])))
"""


def test_ctrl_c_ends_the_check_and_its_workers(tmp_path: Path) -> None:
    """As soon as a worker is at work; the other one may still start."""
    folder, fifo = make_images(tmp_path / "images", 3), tmp_path / "waits"
    os.mkfifo(fifo)
    run = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(folder), str(fifo)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_signals,
    )
    writer = None
    while writer is None:
        assert run.poll() is None, run.communicate()
        time.sleep(0.01)
        with contextlib.suppress(OSError):  # until a worker opens it for reading
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    os.killpg(run.pid, signal.SIGINT)
    # Returns when no process holds the pipes: no worker is left.
    _, errors = run.communicate(timeout=120)
    os.close(writer)
    assert (run.returncode, errors) == (130, "stopped by Ctrl-C\n")


def test_the_check_sees_what_training_sees(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "test"):
        make_images(tmp_path / "images" / split, 2)
    (tmp_path / "images/train/.hidden.png").touch()
    assert check(tmp_path / "images", "--json", tmp_path / "r") == 1  # equal images in both
    result = json.loads((tmp_path / "r").read_text())
    assert result["passed_over"] == {"hidden or of the system": [1, "train/.hidden.png"]}
    assert "holds the splits train and test" in result["refused"]
    out = capsys.readouterr().out
    assert f"images: folder {tmp_path}/images, 4 images" in out
    assert "training would refuse this: " in out
    assert check(tmp_path / "images" / "train", "--json", tmp_path / "r") == 0
    assert json.loads((tmp_path / "r").read_text()).get("refused") is None


def test_tables_are_checked_as_their_folder_but_cannot_be_listed(
    shared_data: Path, tmp_path: Path
) -> None:
    source = open_images(str(shared_data / "broken"))
    path = write_parquet(tmp_path / "data", source, files=1) / "train-00000-of-00001.parquet"
    for data, json_file in ((shared_data / "broken", "folder"), (path, "table")):
        assert check("--data_path", data, "--json", tmp_path / json_file) == 1
    folder, table = (
        names_in(json.loads((tmp_path / name).read_text())) for name in ("folder", "table")
    )
    assert folder == table and folder["corrupt"]
    with pytest.raises(DataError, match="--output lists files, and the images in .* are in shards"):
        main(["--data_path", str(path), "--output", str(tmp_path / "clean.txt")])
