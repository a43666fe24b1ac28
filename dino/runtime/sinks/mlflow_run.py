"""MLflow: one run for an output folder, also after it resumes."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.errors import OptionError
from dino.runtime.sinks.background import Background
from dino.runtime.sinks.base import Jpeg, Sink, Start, select_new
from dino.runtime.sinks.run_ids import find_id, keep_id

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

SERVICE = "mlflow"
MOST_PARAMS = 100  # that a server takes at once
UNKNOWN = "RESOURCE_DOES_NOT_EXIST"  # MLflow's code


def open_mlflow(start: Start) -> Sink:
    """Check that the client can use its tracking store, and reach it in the background.

    Raises:
        OptionError: It cannot.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        client = mlflow.MlflowClient()
    except (MlflowException, ImportError) as error:
        raise OptionError(
            f"`log_to` mlflow: {mlflow.get_tracking_uri()} cannot be used: "
            f"{str(error).strip().splitlines()[0]}",
            remedy="set MLFLOW_TRACKING_URI to a server",
        ) from error
    logging.getLogger("urllib3.connectionpool").addFilter(_tells_of_others)
    kept = os.environ.get("MLFLOW_RUN_ID") or find_id(start, SERVICE)
    return Background(SERVICE, lambda: MlflowRun(client, start.folder, kept))


class MlflowRun(Sink):
    """A run of MLflow. It keeps the first line of each iteration."""

    place = SERVICE

    def __init__(self, client: MlflowClient, folder: Path, kept: str | None) -> None:
        """Continue the run `kept`, or begin one.

        Raises:
            Exception: Of MLflow or its libraries: it cannot be reached, or refuses.
        """
        self.client = client
        run = kept and _continue(client, kept)
        self.is_new = not run
        run = run or client.create_run(_find_experiment(client), run_name=folder.resolve().name)
        self.run: str = run.info.run_id
        # The entity itself shows only the last values, without their steps.
        self.held = {metric.key: metric.step for metric in run.to_proto().data.metrics}
        keep_id(folder, SERVICE, self.run)
        logger.info("mlflow: run %s in %s", self.run, client.tracking_uri)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        from mlflow.entities import Metric

        now = time.time_ns() // 10**6
        new = select_new(values, step, self.held)
        metrics = [Metric(tag, float(value), now, step) for tag, value in new.items()]
        self.client.log_batch(self.run, metrics=metrics)

    def add_images(self, images: Mapping[str, Jpeg], step: int) -> None:
        """Write pictures to a folder of artifacts for each tag."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, f"{step:08}.jpg")
            for tag, jpeg in images.items():
                file.write_bytes(jpeg.content)
                self.client.log_artifact(self.run, str(file), tag)

    def add_settings(self, recipe: str, settings: Mapping[str, Any], step: int) -> None:
        """Write the recipe as an artifact, and a new run's settings as parameters, which stay."""
        from mlflow.entities import Param

        self.client.log_text(self.run, recipe, "recipe.yaml")
        params = [Param(name, str(value)) for name, value in settings.items()]
        for first in range(0, len(params), MOST_PARAMS) if self.is_new else ():
            self.client.log_batch(self.run, params=params[first : first + MOST_PARAMS])

    def close(self, *, completed: bool) -> None:
        """End the run."""
        self.client.set_terminated(self.run, "FINISHED" if completed else "KILLED")


def _tells_of_others(record: logging.LogRecord) -> bool:
    """Leave out what urllib3 says of each of our retries; the run warns once."""
    return record.threadName != f"sink {SERVICE}"


def _continue(client: MlflowClient, run: str) -> Run | None:
    """Continue a run; None, with a line that says so, if it is not there any more."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run)
    except MlflowException as error:
        if error.error_code != UNKNOWN:
            raise
    else:
        if found.info.lifecycle_stage == "active":
            client.update_run(run, status="RUNNING")
            return found
    logger.info("mlflow: a new run begins: %s has no run %s", client.tracking_uri, run)
    return None


def _find_experiment(client: MlflowClient) -> str:
    """The experiment of the client's environment, created if missing."""
    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "Default")
    found = client.get_experiment_by_name(name)
    return str(found.experiment_id if found else client.create_experiment(name))
