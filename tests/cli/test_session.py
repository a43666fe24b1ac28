"""What a command prints: lines by rank, and settings as the flags that users type."""

import logging
from types import SimpleNamespace

import pytest

from dino.cli.session import open_session, set_up_logging, spell
from dino.devices.config import DeviceConfig
from dino.runtime import context
from dino.runtime.config import LaunchConfig


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("`lr` must be >= 0", "--lr must be >= 0"),
        ("`file_out` OUT is a folder; or set `data_path` demo", "--output OUT is a folder; or set --data_path demo"),
        ("`unheard_of` and `pip install timm` stay", "`unheard_of` and `pip install timm` stay"),
    ],
)
def test_settings_are_spelled_as_flags(text: str, printed: str) -> None:
    assert spell(text) == printed


def test_the_first_rank_writes_plain_lines_and_others_only_warnings(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert set_up_logging() == rank
        logging.getLogger("dino").info("progress")
        logging.getLogger("dino").warning("trouble with `%s`", "lr")
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["progress", "trouble with --lr", "[rank 1] trouble with --lr"]


def test_a_session_prints_its_device_and_the_flag_that_changes_it(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = context.open_device(DeviceConfig(device="cpu"))
    monkeypatch.setattr(context, "open_device", lambda *_, **__: chosen)
    with open_session(SimpleNamespace(device=DeviceConfig(), launch=LaunchConfig())) as run:
        assert run.processes.world == 1
    expected = "device: cpu, fp32 (chosen automatically, --device changes it), 1 process\n"
    assert capsys.readouterr().out == expected
