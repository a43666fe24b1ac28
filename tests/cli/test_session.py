"""How every command begins and ends: log lines and errors in the user's words, and the right exit
code."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from dino import errors
from dino.cli.flags import FLAGS
from dino.cli.session import exit_code, open_session, set_up_logging, spell
from dino.devices.config import DeviceConfig
from dino.runtime import context
from dino.runtime.config import FrozenConfig

ROOT = Path(__file__).resolve().parents[2]
KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, errors.DinoError)
    and kind is not errors.PeerFailed
]


@pytest.fixture(autouse=True)
def _keep_log_handlers():
    """A command sets up the log for a process of its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("`lr` must be >= 0", "--lr must be >= 0"),
        ("`hmp_bf16` a and `hmp_bf16` b", "--hmp-bf16 a and --hmp-bf16 b"),
        ("`clean_list` x.png is a picture", "--output x.png is a picture"),
        ("`no_setting`, `Path`, `a b` and `", "`no_setting`, `Path`, `a b` and `"),
        (
            "`pip install timm` or set `data_path` demo",
            "`pip install timm` or set --data_path demo",
        ),
    ],
)
def test_settings_are_spelled_as_their_flags_and_nothing_else_is(text, spelled):
    assert spell(text) == spelled


@pytest.mark.parametrize("name", FLAGS)
def test_every_setting_has_a_spelling(name):
    assert spell(f"`{name}`") == (FLAGS[name].spelling or f"--{name}")


def test_log_lines_are_spelled_and_the_first_process_says_all(monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    assert set_up_logging() == 0
    logging.getLogger("dino.toy").info("`%s` is %s", "lr", "`hmp_bf16`")
    assert capsys.readouterr().out == "--lr is --hmp-bf16\n"


def test_other_processes_say_warnings_alone_and_who_they_are(monkeypatch, capsys):
    for name, value in {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "3",
        "LOCAL_WORLD_SIZE": "4",
    }.items():
        monkeypatch.setenv(name, value)
    assert set_up_logging() == 3
    logging.getLogger("dino.toy").info("quiet")
    logging.getLogger("dino.toy").warning("`lr` is odd")
    assert capsys.readouterr().out == "[rank 3] --lr is odd\n"


def test_a_session_prints_its_device_and_the_flag_that_changes_it(capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    cpu = context.open_device(DeviceConfig(device="cpu"))
    monkeypatch.setattr(context, "open_device", lambda *_, **__: cpu)
    with open_session(FrozenConfig()) as run:
        assert run.processes.world_size == 1
    expected = "device: cpu, fp32 (chosen automatically, --device changes it), 1 process\n"
    assert capsys.readouterr().out == expected


def test_an_error_names_flags(capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    error = errors.OptionError("`score` contradicts `file_in`", remedy="leave one out")
    assert exit_code(raising(error)) == 2
    assert (
        capsys.readouterr().err == "OptionError: --evaluate contradicts --weights; leave one out\n"
    )


def test_a_command_that_returns_gives_zero_and_says_nothing(capsys):
    assert exit_code(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_one_line_on_stderr_and_its_code(kind, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert exit_code(raising(kind("the folder\n   is missing"))) == kind.exit_code
    assert capsys.readouterr() == ("", f"{kind.__name__}: the folder is missing\n")


def test_a_process_of_a_group_says_which_one_it_is(capsys, monkeypatch):
    for name, value in {"PMI_RANK": "3", "PMI_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert exit_code(raising(errors.DataError("no images"))) == 2
    assert capsys.readouterr().err == "[rank 3] DataError: no images\n"


def test_ctrl_c_is_one_line_and_the_code_that_shells_give_it(capsys):
    assert exit_code(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "stopped by Ctrl-C\n")


def test_ctrl_c_in_a_training_run_says_what_is_saved(capsys):
    assert exit_code(raising(KeyboardInterrupt("nothing is saved"))) == 130
    assert capsys.readouterr() == ("", "stopped by Ctrl-C; nothing is saved\n")


def test_a_closed_terminal_ends_a_command_with_the_code_that_shells_give_it(
    tmp_path, hears_signals
):
    made = tmp_path / "temporary"

    def command():
        with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            made.symlink_to(folder)
            signal.raise_signal(signal.SIGHUP)

    with pytest.raises(SystemExit) as end:
        exit_code(command)
    assert end.value.code == 129 and not made.exists()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


def test_a_process_that_ends_with_another_one_has_its_code(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert exit_code(raising(errors.PeerFailed(1, "rank 5 did: KeyError: 'x'"))) == 1
    assert (
        capsys.readouterr().err == "[rank 3] PeerFailed: ended because rank 5 did: KeyError: 'x'\n"
    )


def test_torchrun_reports_the_line_as_the_root_cause(tmp_path, monkeypatch):
    """Its report is made here by its own code, from two processes of which the second failed."""
    files = [tmp_path / str(rank) for rank in range(2)]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[1]))
    exit_code(raising(errors.DataError("no images", remedy="look for them")))
    failed = {rank: ProcessFailure(rank, 7, 2, str(file)) for rank, file in enumerate(files)}
    failed[0].timestamp += 1
    report = str(ChildFailedError("main_dino.py", failed))
    cause = report[report.index("Root Cause") :]
    assert "rank      : 1" in cause and ": DataError: no images; look for them\n" in cause


def test_an_error_file_that_cannot_be_written_changes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path))
    assert exit_code(raising(errors.DataError("no images"))) == 2
    assert capsys.readouterr().err == "DataError: no images\n"


@pytest.mark.parametrize("bug", [ValueError("x"), KeyError("x")])
def test_anything_else_is_a_bug_and_passes_through(bug):
    with pytest.raises(type(bug)):
        exit_code(raising(bug))


@pytest.mark.parametrize(
    "words", [["--no_such_flag", "1"], ["--lr", "fast"], ["--config", "no-such-recipe.yaml"]]
)
def test_a_script_leaves_with_code_2_and_one_line_without_a_traceback(words):
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, "main_dino.py", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("OptionError: ")
    assert done.stderr.count("\n") == 1


def test_a_name_that_is_no_text_is_printed_all_the_same():
    script = "import os; from dino.cli.session import exit_code; exit_code(lambda: print(os.fsdecode(b'a\\xff')))"
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, env=environment, check=True
    )
    assert done.stdout.decode() == "a\\udcff\n"


def test_a_path_that_is_too_long_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        Path("a" * 5000).is_dir()
        Path("a" * 5000).read_bytes()

    assert exit_code(command) == 2
    assert capsys.readouterr().err == f"the path {'a' * 80}... is too long\n"
