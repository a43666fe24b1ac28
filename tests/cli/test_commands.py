"""The command `dino`: every command explains itself, and is a script of the reference under another
name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from dino import __version__
from dino.cli.__main__ import COMMANDS, main
from dino.cli.flags import FLAGS, ipu
from dino.cli.session import exit_code
from dino.models.registry import VITS
from dino.weights.formats import list_converters

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "main_dino": "pretrain",
    "demo": "demo",
    "eval_knn": "knn",
    "eval_linear": "linear",
    "eval_copy_detection": "copy_detection",
    "eval_image_retrieval": "retrieval",
    "eval_video_segmentation": "video_segmentation",
    "eval_ipace_segmentation": "ipace_segmentation",
    "compute_segmentation_metrics": "segmentation_metrics",
    "visualize_attention": "attention",
    "video_generation": "video",
    "extract_features": "embed",
    "extract_weights": "extract_weights",
    "run_with_submitit": "submit",
}


def run(*words, monkeypatch=None):
    return exit_code(lambda: main(list(words)))


def show_help(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main(list(words))
    assert ended.value.code in (0, None)
    return capsys.readouterr().out


def test_version_is_printed(capsys):
    assert run("--version") == 0
    assert capsys.readouterr().out == f"dino {__version__}\n"


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(words, capsys):
    assert run(*words) == 0
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in COMMANDS)


def test_an_unknown_command_names_the_nearest(capsys):
    assert run("pretain") == 2
    assert "unknown command 'pretain': did you mean pretrain?" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"convert"}))
def test_help_of_a_command_has_an_example_and_its_flags_in_groups(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dino"])
    text = show_help(capsys, name, "--help")
    assert re.match(rf"usage: dino {name} ([A-Z_ ]+ )?\[flags\]\n", text)
    assert f"example:\n  dino {name}" in text
    assert "chosen at start" not in text and "(default: None)" not in text


def test_required_flags_come_first(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dino"])
    text = show_help(capsys, "pretrain", "--help")
    assert text.index("required:") < text.index("  --data_path") < text.index("  --device")


def test_the_help_names_every_network_of_ours_and_where_others_come_from(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dino"])
    for command in ("pretrain", "knn"):
        words = re.split(r"[\s,]+", show_help(capsys, command, "--help"))
        assert {*VITS, "timm:NAME", "torchvision"} <= set(words)


def test_ipu_flags_are_shown_where_they_are_asked_for(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dino"])
    assert "--replica" not in show_help(capsys, "pretrain", "--help")
    for words in (["--help-all"], ["--device", "ipu", "--help"], ["--device=ipu", "--help"]):
        text = show_help(capsys, "pretrain", *words)
        assert all((spec.spelling or f"--{name}") in text for name, spec in ipu.FLAGS.items())


@pytest.mark.parametrize("form", list(list_converters()))
def test_convert_takes_the_form_by_name(form, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["dino"])
    assert "--output" in show_help(capsys, "convert", "--to", form, "--help")


def test_convert_without_a_form_names_all(capsys):
    assert run("convert", "in.pth", "out") == 2
    forms = ", ".join(list_converters())
    assert f"--to must be one of {forms} (got None)" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_of_the_reference_holds_nothing_but_its_command(script):
    text = (ROOT / f"{script}.py").read_text(encoding="utf-8")
    assert f"from dino.cli.{SCRIPTS[script]} import main\n" in text
    assert len(text.splitlines()) <= 12


def test_script_and_command_refuse_the_same_flag_alike():
    errors = {
        subprocess.run(
            [sys.executable, *words, "--lr", "-1"], capture_output=True, text=True, cwd=ROOT
        ).stderr
        for words in (["main_dino.py"], ["-m", "dino.cli", "pretrain"])
    }
    assert errors == {"OptionError: --lr must be >= 0 (got -1.0)\n"}


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--batch_size", "did you mean --batch_size_per_device?"),
        ("--learning_rate", "did you mean --lr?"),
        ("--model", "did you mean --arch?"),
        ("--resume", "did you mean --output_dir (a run resumes automatically"),
        ("--workers", "did you mean --num_workers?"),
        ("--gpu", "did you mean --device cuda?"),
        ("--amp", "did you mean --precision bf16?"),
        ("--bf16", "did you mean --precision bf16?"),
        ("--local_crop_size", "did you mean --local_crops_size?"),
        ("--zzz", "--help lists the flags"),
    ],
)
def test_an_unknown_flag_gets_a_good_guess_or_none(word, meant, capsys):
    assert run("pretrain", word, "1") == 2
    assert meant in capsys.readouterr().err


def test_every_flag_says_what_it_means():
    assert all(spec.help and not spec.help.endswith(".") for spec in FLAGS.values())
