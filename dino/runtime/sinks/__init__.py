"""The sinks of a run, one module each, by the name that `log_to` has for them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence

from dino.errors import OptionError
from dino.runtime.sinks.base import Sink, Start
from dino.runtime.sinks.csv_table import CsvTable
from dino.runtime.sinks.json_lines import JsonLines
from dino.runtime.sinks.mlflow_run import open_mlflow
from dino.runtime.sinks.tensorboard import EventFile
from dino.runtime.sinks.wandb_run import open_wandb

SINKS: Mapping[str, Callable[[Start], Sink]] = {
    "tensorboard": EventFile.open,
    "jsonl": JsonLines,
    "csv": CsvTable,
    "wandb": open_wandb,
    "mlflow": open_mlflow,
}
NONE = "none"
PACKAGES = {"wandb": "wandb", "mlflow": "mlflow-skinny"}  # in extras of the sinks' names


def check_names(names: Sequence[str]) -> None:
    """Check that what `log_to` names can be imported.

    Raises:
        OptionError: A package is missing, or the names contradict each other.
    """
    if NONE in names and len(names) > 1:
        raise OptionError(f"`log_to` {NONE} stands alone (got {' '.join(names)})", value=names)
    for name, package in PACKAGES.items():
        if name in names and importlib.util.find_spec(name) is None:
            raise OptionError(
                f"`log_to` {name} needs the package {name}",
                value=names,
                remedy=f"pip install {package} (the extra {name})",
            )


def open_sinks(names: Sequence[str], start: Start) -> list[Sink]:
    """Open the named sinks, each once.

    Raises:
        OptionError: One cannot be written to, or lacks what it needs to reach its service.
    """
    return [SINKS[name](start) for name in dict.fromkeys(names) if name != NONE]
