"""Which sinks there are, and what is refused before a run begins."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dino.config import LIMITS
from dino.errors import OptionError
from dino.runtime.metrics import MetricLog
from dino.runtime.sinks import NONE, SINKS, check_names, open_sinks
from dino.runtime.sinks.base import Start
from dino.training.config import RunConfig


def test_the_setting_has_a_word_for_each_sink_and_for_none() -> None:
    words = RunConfig.__dataclass_fields__["log_to"].metadata[LIMITS].choices
    assert words == (*SINKS, NONE)


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_named_with_the_extra_that_has_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    check_names(["tensorboard", "jsonl", "csv"])
    with pytest.raises(OptionError, match=f"`log_to` {name} needs the package {name}") as caught:
        check_names(["jsonl", name])
    assert caught.value.remedy == f"pip install {package} (the extra {name})"


def test_none_stands_alone_and_opens_nothing(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="`log_to` none stands alone"):
        check_names(["none", "jsonl"])
    for names in (["none"], []):
        check_names(names)
        MetricLog(tmp_path, epoch=0, iteration=0, log_to=names).close()
    assert [path.name for path in tmp_path.iterdir()] == ["log.txt"]


def test_a_sink_that_is_named_twice_is_opened_once(tmp_path: Path) -> None:
    assert len(open_sinks(["jsonl", "csv", "jsonl"], Start(folder=tmp_path))) == 2
