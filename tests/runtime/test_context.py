"""Opening and leaving a run: its device and the output folder."""

import errno
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dino.devices.config import DeviceConfig, PrecisionConfig
from dino.errors import DeviceError, OptionError
from dino.runtime import context
from dino.runtime.config import LaunchConfig
from dino.runtime.context import make_output_folder, open_run


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


def test_a_run_says_its_device_and_how_it_was_chosen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), open_run(DeviceConfig(device="cpu"), LaunchConfig()) as run:
        assert run.device.name == "cpu"
        assert run.processes.world_size == 1
    assert caplog.messages == ["device: cpu, fp32 (as asked), 1 process"]


def test_a_device_that_was_not_asked_for_is_said_to_be_chosen(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = context.open_device(DeviceConfig(device="cpu"))
    monkeypatch.setattr(context, "open_device", lambda *_, **__: chosen)
    with caplog.at_level(logging.INFO), open_run(DeviceConfig(), LaunchConfig()):
        pass
    assert "(chosen automatically, `device` changes it)" in caplog.text


def test_a_device_that_cannot_be_used_opens_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "Processes", None)
    precision = PrecisionConfig(precision="fp16")
    with (
        pytest.raises(DeviceError, match="`precision` fp16 needs `device` cuda"),
        open_run(DeviceConfig(device="cpu"), LaunchConfig(), precision=precision),
    ):
        pass


def test_the_group_is_left_when_the_work_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    monkeypatch.setattr(context.Processes, "close", lambda _: left.append(True))
    with (
        pytest.raises(RuntimeError, match="work"),
        open_run(DeviceConfig(device="cpu"), LaunchConfig()),
    ):
        raise RuntimeError("work")
    assert left == [True]


@pytest.mark.parametrize(("here", "first"), [("eager", "lazy"), (None, "lazy"), ("lazy", None)])
def test_processes_in_different_modes_do_not_begin(here: str | None, first: str | None) -> None:
    device = SimpleNamespace(mode=here)
    processes = SimpleNamespace(read_from_first=lambda name, value: first or "none")
    with pytest.raises(
        DeviceError,
        match=f"in {here or 'none'} mode and rank 0 in {first or 'none'} mode; .*`output_dir`",
    ):
        context._check_mode(device, processes)
    context._check_mode(SimpleNamespace(mode=first), processes)


def test_an_output_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    for _ in range(2):
        assert make_output_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
        assert list((tmp_path / "a" / "b").iterdir()) == []


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_an_output_folder_cannot_stand_on_or_below_a_file(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OptionError, match="cannot be written to") as caught:
        make_output_folder(str(tmp_path / path))
    text = str(caught.value)
    assert text.startswith(f"`output_dir` {tmp_path / path} ")
    assert text.endswith("name another folder")
    assert "\n" not in text
    assert (tmp_path / "file").read_text() == "here"


def test_an_output_folder_on_a_full_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(OptionError, match="No space left on device"):
        make_output_folder(str(tmp_path / "new"))
