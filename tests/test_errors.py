"""Errors end a command with one line and the right exit code; bugs keep their traceback."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dino import errors

ROOT = Path(__file__).resolve().parents[1]

EXIT_CODES = {
    "DinoError": 2,
    "CheckFailed": 1,
    "OptionError": 2,
    "DataError": 2,
    "CheckpointError": 2,
    "WeightsError": 2,
    "DeviceError": 2,
    "NonFiniteError": 3,
    "Interrupted": 75,
    "PeerFailed": 2,
}


def raising(error):
    def command():
        raise error

    return command


def test_exit_codes_are_frozen():
    kinds = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name: kind.exit_code for name, kind in kinds.items() if issubclass(kind, errors.DinoError)} == EXIT_CODES


def test_the_documented_table_holds_every_exit_code_and_no_other():
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    section = text.split("## Exit codes")[1].split("\n## ")[0]
    assert re.findall(r"^\| (\d+) \|", section, re.MULTILINE) == ["0", "1", "2", "3", "75"]
    assert {0, *EXIT_CODES.values()} == {0, 1, 2, 3, 75}


def test_a_command_that_returns_gives_zero_and_says_nothing(capsys):
    assert errors.exit_code(lambda: None) == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name in EXIT_CODES if name != "PeerFailed"])
def test_an_error_is_one_line_on_stderr_and_its_code(name, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert errors.exit_code(raising(getattr(errors, name)("the folder\n   is missing"))) == EXIT_CODES[name]
    assert capsys.readouterr() == ("", f"{name}: the folder is missing\n")


def test_a_process_of_a_group_says_which_one_it_is(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert errors.exit_code(raising(errors.DataError("no images"))) == 2
    assert capsys.readouterr().err == "[rank 3] DataError: no images\n"


def test_ctrl_c_is_one_line_and_the_code_that_shells_give_it(capsys):
    assert errors.exit_code(raising(KeyboardInterrupt())) == 130
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("stopped by Ctrl-C") and err.count("\n") == 1


def test_a_process_that_ends_with_another_one_has_its_code(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert errors.exit_code(raising(errors.PeerFailed(1, "5", "KeyError: 'x'"))) == 1
    assert capsys.readouterr().err == "[rank 3] PeerFailed: ended because rank 5 did: KeyError: 'x'\n"


@pytest.mark.parametrize("bug", [ValueError("x"), KeyError("x")])
def test_anything_else_is_a_bug_and_passes_through(bug):
    with pytest.raises(type(bug)):
        errors.exit_code(raising(bug))


@pytest.mark.parametrize("words", [["--no_such_flag", "1"], ["--lr", "fast"], ["--config", "no-such-recipe.yaml"]])
def test_a_script_leaves_with_code_2_and_one_line_without_a_traceback(words):
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(
        [sys.executable, "main_dino.py", *words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("OptionError: ")
    assert done.stderr.count("\n") == 1


def test_a_name_that_is_no_text_is_printed_all_the_same():
    script = "import os; from dino.errors import exit_code; exit_code(lambda: print(os.fsdecode(b'a\\xff')))"
    environment = {**os.environ, "PYTHONUTF8": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=True)
    assert done.stdout.decode() == "a\\udcff\n"
