"""The command: all eight steps in a short form on the CPU, and what is left after Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dino.cli import verify as command
from dino.errors import CheckFailed, OptionError
from dino.verify.base import Variant
from dino.verify.families import find_family
from dino.verify.steps import alignment, golden, operators, product, speed, training
from tests.verify.test_report import REPORT, check_form

ROOT = Path(__file__).resolve().parents[2]
REPLAYED = ("aten::gelu", "aten::mm", "aten::copy_", "aten::_foreach")
KEPT = {
    product: {"eager"},
    golden: {"eager fp32"},
    alignment: {"CPU", "eager fp32"},
    training: {"CPU", "eager fp32"},
}
KEPT |= {speed: {"eager"}}


@pytest.fixture
def short(monkeypatch):
    """One mode and one number format; what else takes long is left out, and every step is the real
    one."""
    from dino.verify.operators import list_operators

    def keep(step, labels):
        listed = step.list_variants
        monkeypatch.setattr(
            step, "list_variants", lambda setting: [v for v in listed(setting) if v.label in labels]
        )

    for step, labels in KEPT.items():
        keep(step, labels)
    skipped = [name for name in list_operators("fp32", batch=1) if not name.startswith(REPLAYED)]
    options = {"format": "fp32", "skip": skipped, "batch": 1}
    monkeypatch.setattr(
        operators,
        "list_variants",
        lambda setting: [Variant(label="fp32", device="cpu", options=options)],
    )
    reference = alignment.list_variants
    monkeypatch.setattr(
        alignment,
        "list_variants",
        lambda setting: [
            Variant(
                **{**vars(each), "options": {"formats": ["fp32"]} if each.label == "CPU" else {}}
            )
            for each in reference(setting)
        ],
    )


@pytest.mark.long
def test_all_eight_steps_pass_on_the_cpu(short, tmp_path, capsys):
    before = set(os.listdir(tmp_path))
    command.main(["--device", "cpu", "--output_dir", str(tmp_path), "--patience", "20"])
    assert set(os.listdir(tmp_path)) - before == {command.REPORT, command.PAGE}
    report = json.loads((tmp_path / command.REPORT).read_text(encoding="utf-8"))
    check_form(report, REPORT)
    assert [(step["name"], step["status"]) for step in report["steps"]] == [
        (name, "pass") for name in command.STEPS
    ], report
    assert report["conclusion"]["mode"] == "eager" and not report["stopped"]
    parts = {
        step["name"]: {part["name"]: part["figures"] for part in step["parts"]}
        for step in report["steps"]
    }
    assert (
        parts["facts"]["machine"]["versions"]["torch"]
        and parts["facts"]["machine"]["host"]["cores"] >= 1
    )
    assert len(parts["golden"]["eager fp32"]["checks"]) > 150
    assert parts["operators"]["fp32"]["counts"]["pass"] >= 10
    assert parts["alignment"]["eager fp32"]["table"]["student, attention"]["most"] == 0.0
    assert parts["training"]["eager fp32"]["loss gap"] == 0.0
    assert (
        parts["speed"]["eager"]["launches a step"] > 100 and parts["speed"]["eager"]["ms by phase"]
    )
    assert parts["cards"].keys() >= {"count"}
    page = (tmp_path / command.PAGE).read_text(encoding="utf-8")
    assert page in capsys.readouterr().out and str(tmp_path) not in page + json.dumps(report)


def test_a_folder_that_cannot_be_written_to_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("the user's")
    with pytest.raises(OptionError, match="--output_dir"):
        command.main(["--device", "cpu", "--output_dir", str(tmp_path / "file" / "folder")])
    assert (tmp_path / "file").read_text() == "the user's"


@pytest.mark.parametrize(
    ("torch", "lazy_mode", "modes"),
    [
        ("2.10.0a0+gitc1e5ed4", None, ("lazy", "compiled", "eager")),
        ("2.10.0a0+gitc1e5ed4", True, ("lazy",)),
        ("2.10.0a0+gitc1e5ed4", False, ("compiled", "eager")),
        ("2.10.0+cpu", None, ("compiled", "lazy", "eager")),
    ],
)
def test_the_mode_of_a_run_comes_first_and_lazy_mode_leaves_out_others(
    torch, lazy_mode, modes, monkeypatch
):
    monkeypatch.setattr(command, "find_version", lambda name: torch)
    assert command.choose_modes("hpu", lazy_mode) == modes
    assert command.choose_modes("cpu", lazy_mode) == ("eager", "compiled")


def test_another_devices_command_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"dino\.devices\.align --device ipu"):
        command.main(["--device", "ipu", "--output_dir", str(tmp_path)])


def test_a_failed_step_ends_with_1(monkeypatch, tmp_path):
    from tests.verify.samples import finding, step

    reports = [
        step("facts", finding("machine")),
        step("golden", finding("eager", "fail", remedy="no")),
    ]
    monkeypatch.setattr(command, "verify", lambda setting, **more: iter(reports))
    with pytest.raises(CheckFailed, match="step 3, Golden, failed"):
        command.main(["--device", "cpu", "--output_dir", str(tmp_path)])


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_its_processes_and_the_report_is_there(number, tmp_path):
    words = ["--device", "cpu", "--only", "2", "3", "--output_dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dino.verify", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # background jobs ignore it
    )
    for line in process.stdout:
        if line.startswith("2/8 product of matrices: eager"):
            break
    end = time.monotonic() + 120
    while len(find_family([process.pid], "")) < 1 and time.monotonic() < end:
        time.sleep(0.05)
    children = children_of(process.pid)
    assert children
    process.send_signal(number)
    assert process.wait(60) == 128 + signal.SIGINT
    process.stdout.close()
    report = json.loads((tmp_path / command.REPORT).read_text(encoding="utf-8"))
    check_form(report, REPORT)
    assert report["stopped"] and [step["name"] for step in report["steps"]] == list(command.STEPS)
    assert report["steps"][2]["summary"] == "stopped by Ctrl-C"
    assert not [
        pid
        for pid in children
        if Path(f"/proc/{pid}/cmdline").exists() and children_of(pid, own=True)
    ]


def children_of(parent, own=False):
    """Processes whose parent it is; with `own`, the process itself if it has not ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, ppid = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z" and (int(folder.name) if own else int(ppid)) == parent:
            found.append(int(folder.name))
    return found
