"""The real client of MLflow with its local store: values, one run over resumes, a lost server."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from dino.errors import OptionError
from dino.runtime.metrics import MetricLog
from dino.runtime.sinks import background
from dino.runtime.sinks.base import Jpeg

mlflow = pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file://{tmp_path}/store")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "birds")
    monkeypatch.setattr(background, "LAST_WAIT", 600.0)  # a busy machine
    monkeypatch.chdir(tmp_path)


def open_log(folder: Path, iteration: int = 0) -> MetricLog:
    groups = {"loss": "train/loss"}
    return MetricLog(folder, epoch=0, iteration=iteration, log_to=["mlflow"], groups=groups)


def find_runs() -> list:
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("birds")
    return client.search_runs([experiment.experiment_id], order_by=["attributes.start_time"])


def history(run: str, tag: str) -> list[tuple[int, float]]:
    metrics = mlflow.MlflowClient().get_metric_history(run, tag)
    return [(metric.step, metric.value) for metric in metrics]


def test_numbers_pictures_and_settings_are_in_one_run_that_a_resume_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "vits16"
    folder.mkdir()
    log = open_log(folder)
    settings = {"lr": 0.1, **{f"setting{index}": index for index in range(120)}}
    log.write_settings("lr: 0.1\n", settings, 0)
    for step in (10, 20, 30):
        log.write_scalars({"loss": step / 4, "time/iteration": float("nan")}, step)
    log.write_images({"pictures/crops": Jpeg(b"picture", 1, 1)}, 30)
    log.close(completed=False)
    (run,) = find_runs()
    assert (run.info.status, run.info.run_name) == ("KILLED", "vits16")
    assert run.data.params == {name: str(value) for name, value in settings.items()}

    log = open_log(folder, 10)  # its own lines 20 and 30 are there, and it repeats them
    log.write_settings("lr: 0.2\n", {"lr": 0.2}, 10)
    for step in (20, 30, 40):
        log.write_scalars({"loss": step / 4}, step)
    log.write_scalars({"own_view": 50.0}, 20)
    log.close(completed=True)
    (run,) = find_runs()
    assert run.info.status == "FINISHED" and run.data.params["lr"] == "0.1"
    found = run.info.run_id
    assert history(found, "train/loss") == [(10, 2.5), (20, 5.0), (30, 7.5), (40, 10.0)]
    assert history(found, "own_view") == [(20, 50.0)]
    client = mlflow.MlflowClient()
    assert client.download_artifacts(found, "recipe.yaml", tmp_path)
    assert (tmp_path / "recipe.yaml").read_text() == "lr: 0.2\n"
    (picture,) = client.list_artifacts(found, "pictures/crops")
    assert picture.path == "pictures/crops/00000030.jpg"
    assert caplog.messages == []


def test_a_run_that_the_store_has_lost_or_deleted_is_a_new_one_and_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    (tmp_path / "run").mkdir()
    log = open_log(tmp_path / "run")
    log.write_scalars({"loss": 1.0}, 10)
    log.close(completed=False)
    (lost,) = find_runs()
    mlflow.MlflowClient().delete_run(lost.info.run_id)
    log = open_log(tmp_path / "run", 10)
    log.write_scalars({"loss": 2.0}, 20)
    log.close(completed=True)
    (run,) = find_runs()
    assert history(run.info.run_id, "train/loss") == [(20, 2.0)]
    told = [line for line in caplog.messages if line.startswith("mlflow: a new run begins")]
    assert len(told) == 1 and lost.info.run_id in told[0]


def test_a_server_that_does_not_answer_costs_lines_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    log = open_log(tmp_path)
    for step in (10, 20):
        log.write_scalars({"loss": 1.0}, step)
    log.close(completed=True)
    assert len(caplog.messages) == 1, caplog.messages
    assert caplog.text.count("mlflow does not take the run's lines: ") == 1
    assert "127.0.0.1" in caplog.text and caplog.text.endswith("; lines are lost\n")


def test_a_store_that_the_client_cannot_use_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "gopher://nowhere")
    with pytest.raises(
        OptionError, match=r"`log_to` mlflow: gopher://nowhere cannot be used: "
    ) as caught:
        open_log(tmp_path)
    assert caught.value.remedy == "set MLFLOW_TRACKING_URI to a server"
