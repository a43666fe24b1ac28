"""The real client of W&B, offline: what its own file holds, one run over resumes, and no key."""

from __future__ import annotations

import glob
import json
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dino.errors import OptionError
from dino.runtime.metrics import MetricLog
from dino.runtime.sinks import background
from dino.runtime.sinks.base import Jpeg
from tests.wandb_files import read_config, read_history

wandb = pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No account, no network, no settings of this machine."""
    for name in ("WANDB_API_KEY", "WANDB_RUN_ID", "WANDB_DIR", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "home" / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    monkeypatch.setenv("WANDB_X_SAVE_REQUIREMENTS", "false")  # takes half a second
    monkeypatch.setattr(background, "LAST_WAIT", 600.0)  # a busy machine
    wandb.teardown()
    yield
    wandb.teardown()


def test_numbers_pictures_and_settings_are_in_one_run_that_a_resume_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from PIL import Image

    Image.new("RGB", (3, 2)).save(tmp_path / "picture.jpg")
    folder = tmp_path / "run"
    folder.mkdir()
    log = MetricLog(folder, epoch=0, iteration=0, log_to=["wandb"], groups={"loss": "train/loss"})
    log.write_settings("lr: 0.1\n", {"lr": 0.1, "sizes": [1, 2], "init_from": None}, 0)
    for step in (10, 20):
        log.write_scalars({"loss": step / 4, "hpu/cpu_fallbacks": 1}, step)
    log.write_scalars({"own_view": 50.0}, 20)
    picture = (tmp_path / "picture.jpg").read_bytes()
    log.write_images({"pictures/crops": Jpeg(picture, 2, 3)}, 20)
    log.close(completed=True)
    log = MetricLog(folder, epoch=1, iteration=20, log_to=["wandb"], groups={"loss": "train/loss"})
    log.write_scalars({"loss": 7.5}, 30)
    log.close(completed=False)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    wandb.teardown()  # its service has written all only when it ends

    run = json.loads((folder / "run_ids.json").read_text())["wandb"]["id"]
    history = read_history(folder)
    assert [line[:2] for line in history] == [(run, 10), (run, 20), (run, 30)]
    first, second, third = (values for *_, values in history)
    assert first == {"train/loss": 2.5, "hpu/cpu_fallbacks": 1} and third == {"train/loss": 7.5}
    assert {tag: value for tag, value in second.items() if "crops" not in tag} == {
        "train/loss": 5.0,
        "hpu/cpu_fallbacks": 1,
        "own_view": 50.0,
    }
    assert (second["pictures/crops/width"], second["pictures/crops/height"]) == (3, 2)
    (file,) = folder.glob(f"wandb/offline-run-*/files/{second['pictures/crops/path']}")
    assert file.read_bytes() == picture
    config = read_config(folder)
    assert (config["lr"], config["sizes"], config["init_from"]) == (0.1, [1, 2], None)


def test_without_a_key_the_run_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(OptionError, match=r"`log_to` wandb: .*WANDB_API_KEY, or WANDB_MODE=off"):
        MetricLog(tmp_path, epoch=0, iteration=0, log_to=["wandb"])


CHILD = """
import sys, time
from pathlib import Path
from dino.runtime.metrics import MetricLog
log = MetricLog(Path(sys.argv[1]), epoch=0, iteration=0, log_to=["jsonl", "csv", "wandb", "mlflow"])
for step in (10, 20, 30, 40):
    log.write_scalars({"loss": step / 4}, step)
time.sleep(600)
"""


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def count_lines(pattern: str) -> int:
    return sum(len(Path(path).read_text().splitlines()) for path in glob.glob(pattern))


def read_command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""


def test_a_run_that_is_killed_goes_on_as_the_same_run_with_each_iteration_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL", "0.05")  # else 15 s
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)])
    wait_until(lambda: count_lines(f"{tmp_path}/store/0/*/metrics/loss") == 4)
    # The client of W&B writes a line when the next one comes.
    wait_until(lambda: len(read_history(tmp_path)) == 3)
    child.kill()
    assert child.wait() == -signal.SIGKILL

    log = MetricLog(tmp_path, epoch=0, iteration=30, log_to=["jsonl", "csv", "wandb", "mlflow"])
    for step in (40, 50):
        log.write_scalars({"loss": step / 4}, step)
    log.close(completed=True)
    whole = [(step, step / 4) for step in (10, 20, 30, 40, 50)]
    wandb.teardown()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["iteration"], line["loss"]) for line in lines] == whole
    rows = [f"{step},{loss}" for step, loss in whole]
    assert (tmp_path / "metrics.csv").read_text().splitlines() == ["iteration,loss", *rows]
    ids = json.loads((tmp_path / "run_ids.json").read_text())
    metrics = mlflow.MlflowClient().get_metric_history(ids["mlflow"]["id"], "loss")
    assert [(metric.step, metric.value) for metric in metrics] == whole
    history = [(step, values["loss"]) for run, step, values in read_history(tmp_path)]
    assert history == whole and {run for run, *_ in read_history(tmp_path)} == {ids["wandb"]["id"]}
    service = f"--pid\0{child.pid}\0".encode()  # ends with the run that started it
    wait_until(lambda: not any(service in read_command(path) for path in Path("/proc").iterdir()))
