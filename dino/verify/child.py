"""Runs in a variant's own process: opens the device, runs, and writes a journal that survives."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import math
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dino.config import change
from dino.errors import DinoError
from dino.runtime.launch import VARIABLES
from dino.training.config import TrainConfig
from dino.verify.base import Bench, NotRunError, Say, Setting, Variant

MEMORY_WORDS = (
    "out of memory",
    "memory is full",
    "allocation failed",
    "cannot allocate memory",
    "can't allocate",
)
# verify launches its processes itself and sets their mode with flags.
NOT_OURS = (*VARIABLES, "PT_HPU_LAZY_MODE")


def work(order: Mapping[str, Any]) -> int:
    """Run one variant; everything about it goes to the journal, one JSON object per line.

    Args:
        order: `step`, `variant`, `setting`, `limit`, `journal` and `environment` as the runner
            writes them.

    Returns:
        The exit code.
    """
    journal = Path(order["journal"])
    setting = Setting(**{**order["setting"], "folder": Path(order["setting"]["folder"])})
    variant = Variant(**order["variant"])
    for name in NOT_OURS:
        os.environ.pop(name, None)
    os.environ.update(order["environment"])

    def write(**line: Any) -> None:
        with journal.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def say(text: str, *, within: float | None = None) -> None:
        write(say=text, within=within)

    step = importlib.import_module(f"dino.verify.steps.{order['step']}")
    try:
        with open_bench(variant, setting, say, order["limit"]) as bench:
            figures = step.run(variant, bench)
        write(figures=figures)
    except BaseException as error:  # noqa: BLE001 - any error belongs in the report
        traceback.print_exc()
        write(error=describe(error), kind=classify(error))
        return 1
    return 0


@contextlib.contextmanager
def open_bench(
    variant: Variant, setting: Setting, say: Say, limit: float = math.inf
) -> Iterator[Bench]:
    """Open the device of a variant; its errors are explained as in a training run.

    Raises:
        DinoError: The device, mode or number format is not available, or memory is full.
    """
    if variant.device is None:
        yield Bench(run=None, setting=setting, say=say, limit=limit)
        return
    from dino.runtime.context import open_run

    options = change(TrainConfig(), variant.settings())
    say("opening the device")
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout, force=True)
    with open_run(options.device, options.launch, precision=options.precision) as run:
        yield Bench(run=run, setting=setting, say=say, limit=limit)


def classify(error: BaseException) -> str:
    """Return the kind of an error, as in `Result`."""
    chain: BaseException | None = error
    seen: list[BaseException] = []
    while chain is not None and chain not in seen:
        seen.append(chain)
        text = str(chain).lower()
        if isinstance(chain, MemoryError) or any(word in text for word in MEMORY_WORDS):
            return "memory"
        chain = chain.__cause__ or chain.__context__
    if isinstance(error, NotRunError):
        return "not run"
    return "refused" if isinstance(error, DinoError) else "error"


def describe(error: BaseException) -> str:
    """Return the first line of an error, with its type."""
    text = " ".join(str(error).strip().partition("\n")[0].split())
    return text if isinstance(error, DinoError) else f"{type(error).__name__}: {text}"
