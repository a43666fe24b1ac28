"""The doctor: whatever hl-smi, the bridge and the environment are like, it says so and ends with 0 or 1."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dino.doctor import machine
from dino.doctor.__main__ import main
from dino.doctor.cuda import check_cuda
from dino.doctor.environment import check_modules, check_op_list, examine_op_lists, read_modules, split_lines
from dino.doctor.hl_smi import QUERY, Card, Holder, check_cards, holders_of_files, parse_query, parse_table
from dino.doctor.report import Problem, Report
from dino.doctor.software import check_driver, check_mode, check_replaced_torch, check_torch, choose_mode, describe_mode
from dino.errors import CheckFailed, exit_code

ROOT = Path(__file__).resolve().parents[1]
TORCH, BRIDGE = "2.6.0+git4f3c1a", "1.21.0.555"


def query_output(driver="1.21.0-ca59b5a", cards=8):
    head = "index, name, driver_version, memory.total [MiB], memory.used [MiB], utilization.aip [%], module_id"
    rows = [f"{i}, HL-225, {driver}, 98304 MiB, 768 MiB, 0 %, {(i + 2) % 8}" for i in range(cards)]
    return "\n".join([head, *rows]) + "\n"


def table_output(driver="1.21.0-ca59b5a", cards=8, held=()):
    line = "+-----------------------------------------------------------------------------+"
    rows = [
        row
        for i in range(cards)
        for row in (
            f"|   {i}  HL-225              N/A  | 0000:33:00.0     N/A |                   0  |",
            "| N/A   28C   N/A    93W / 600W |    768MiB / 98304MiB |     0%           N/A |",
        )
    ]
    used = [
        f"|   {i}        {4711 + i}   C      python3.10                                30000MiB |"
        if i in held
        else f"|   {i}        N/A   N/A    N/A                                       N/A     |"
        for i in range(cards)
    ]
    head = [line, "| HL-SMI Version:      hl-1.21.0-fw-59.2.1.0   |", f"| Driver Version:       {driver}          |"]
    middle = [line, "| Compute Processes:                              AIP Memory |", line]
    return "\n".join([*head, line, *rows, *middle, *used, line]) + "\n"


class Patient:
    """A machine with faked programs, packages, device files and environment; nothing of this one shows through."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch, self.files, self.versions = folder, monkeypatch, [], {"torch": TORCH}
        for name in ("bin", "site"):
            (folder / name).mkdir()
        for name in os.environ:
            if name.startswith(("PT_", "HABANA_", "HLS_", "HCCL_", "TORCH_DEVICE")) or name in {"RANK", "LOCAL_RANK"}:
                monkeypatch.delenv(name)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("PYTHONPATH", str(folder / "site"))
        monkeypatch.setattr(
            machine, "TORCH", "answer = {'unknown': [n for n in json.loads(sys.argv[1]) if n == 'iadd']}"
        )
        monkeypatch.setattr(machine, "list_device_files", lambda: self.files)
        monkeypatch.setattr(machine, "list_open_files", dict)
        monkeypatch.setattr(machine, "find_version", lambda *names: self.versions.get(names[0]))

    def install_hl_smi(self, script):
        path = self.folder / "bin" / "hl-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def install_cards(self, driver="1.21.0-ca59b5a", held=()):
        (self.folder / "query.txt").write_text(query_output(driver))
        (self.folder / "table.txt").write_text(table_output(driver, held=held))
        self.install_hl_smi(f'cd {self.folder}; if [ "$1" = -Q ]; then cat query.txt; else cat table.txt; fi')

    def install_bridge(self, code="", version=BRIDGE):
        package = self.folder / "site" / "habana_frameworks" / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(textwrap.dedent(code))
        self.versions["habana-torch-plugin"] = version


@pytest.fixture
def patient(tmp_path, monkeypatch):
    return Patient(tmp_path, monkeypatch)


@pytest.fixture
def healthy(patient):
    patient.install_cards()
    patient.install_bridge()
    return patient


@pytest.fixture
def examine(capfd):
    """Run the command: its exit code, its report on one line, its last line on stderr."""

    def run(*words):
        code = exit_code(lambda: main(list(words) or ["--device", "hpu"]))
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert (code, err) == (0, "") or (code == 1 and err.startswith("CheckFailed: ") and err.count("\n") == 1)
        return code, " ".join(out.split()), err

    return run


def test_a_healthy_machine_with_eight_cards(healthy, examine):
    code, text, _ = examine()
    assert code == 0 and text.endswith("no problems found"), text
    for found in (
        "device hpu (as asked)",
        f"torch {TORCH}",
        "torch build the vendor's",
        f"bridge {BRIDGE}, can be imported",
        "hl-smi works",
        "driver 1.21.0-ca59b5a",
        "cards 8",
        "card 7: HL-225, module 1, 768 MiB of 98304 MiB used, load 0 %",
        "held by nobody",
        "PT_HPU_LAZY_MODE unset, a run takes 0 (the default of software 1.21): eager",
    ):
        assert found in text


def test_facts_are_aligned(healthy, capsys):
    main(["--device", "hpu"])
    facts = capsys.readouterr().out.split("\n\n")[0].splitlines()
    width = len("bridge's loader") + 2
    assert all(line[width - 1] == " " and line[width] != " " for line in facts)


def test_one_card_held_is_a_note_with_the_process(healthy, examine):
    healthy.install_cards(held=(3,))
    code, text, _ = examine()
    assert code == 0
    assert "held by card 3: python3.10 (pid 4714)" in text
    assert "note: in use: card 3: python3.10 (pid 4714); 7 of 8 cards are free" in text and "acquire failed" in text


def test_all_cards_held_cannot_run(healthy, examine):
    healthy.install_cards(held=range(8))
    code, text, error = examine()
    assert code == 1 and "all cards are in use" in error and "4711" in error and "Device acquire failed" in text


def test_the_chosen_modules_are_the_cards_that_count(healthy, examine):
    healthy.install_cards(held=(3,))
    healthy.patch.setenv("HABANA_VISIBLE_MODULES", "5")  # of card 3
    assert examine()[0] == 1
    healthy.patch.setenv("HABANA_VISIBLE_MODULES", "6")
    code, text, _ = examine()
    assert code == 0 and text.endswith("no problems found")


def test_without_hl_smi_processes_the_open_files_tell_who_holds_a_card(healthy, examine, monkeypatch):
    monkeypatch.setattr(
        machine, "list_open_files", lambda: {99: ("python3", ["/dev/accel/accel2", "/dev/accel/accel2"])}
    )
    code, text, _ = examine()
    assert code == 0 and "held by card 2: python3 (pid 99)" in text


def test_a_driver_of_another_release(healthy, examine):
    healthy.install_cards(driver="1.19.1-26b0cd6")
    code, text, error = examine()
    assert code == 1 and "driver is 1.19.1-26b0cd6" in error and "software 1.21" in error
    assert "remedy: use the container of software 1.19, or install driver 1.21 on the host" in text


HL_SMI = {
    "garbage": (r"printf '\000\377|,,|\n| 1 2 3\n,,,,,,\nDriver Version:\n'", "its output is not understood"),
    "silence": ("exit 0", "its output is not understood"),
    "failure": ("echo 'driver not loaded' >&2; exit 3", "exit code 3: driver not loaded"),
    "crash": ("kill -SEGV $$", "killed by SIGSEGV"),
    "hang": ("sleep 60 & sleep 60", "no answer in 0.3 s"),
    "no program": (None, "not found"),
    "no interpreter": ("", "not found"),
}


@pytest.mark.parametrize("kind", HL_SMI)
def test_whatever_hl_smi_does_the_doctor_goes_on(kind, patient, examine, monkeypatch):
    script, said = HL_SMI[kind]
    patient.install_bridge()
    if script is not None:
        patient.install_hl_smi(script)
    if script == "":
        (patient.folder / "bin" / "hl-smi").write_text("#!/no/such/shell\n")
    monkeypatch.setattr(machine, "TOOL_SECONDS", 0.3 if kind == "hang" else 10.0)
    began = time.monotonic()
    code, text, _ = examine()
    assert code == 1 and "no cards are visible here" in text and said in text
    patient.files = ["/dev/accel/accel0"]
    code, text, _ = examine()
    assert code == 0 and said in text and "cards 1" in text and "note: " in text
    assert time.monotonic() - began < 15


def test_an_hl_smi_without_the_query_still_gives_cards_and_driver(patient, examine):
    patient.install_bridge()
    (patient.folder / "table.txt").write_text(table_output(held=(0,)))
    patient.install_hl_smi(f'if [ "$1" = -Q ]; then exit 1; else cat {patient.folder}/table.txt; fi')
    code, text, _ = examine()
    assert code == 0 and "cards 8" in text and "driver 1.21.0" in text and "card 0: python3.10 (pid 4711)" in text


BRIDGES = {
    "crash": ("import os; os.abort()", "killed by SIGABRT"),
    "hang": ("import time; time.sleep(60)", "no answer in 1 s"),
    "library": (
        "raise ImportError('libSynapse.so: cannot open shared object file')",
        "a library of the Gaudi software",
    ),
    "stock": ("raise AssertionError('Stock PyTorch version is not supported in Lazy mode')", "PT_HPU_LAZY_MODE=0"),
    "symbol": ("raise ImportError('undefined symbol: _ZN3c10')", "pip replaced the vendor's torch"),
    "acquire": ("raise RuntimeError('synStatus 26 Device acquire failed')", "held by another process"),
    "other": ("raise ValueError('odd')", "is installed and cannot be imported: ValueError: odd"),
    "exit": ("import sys; sys.exit()", "it ended without an answer"),
}


@pytest.mark.parametrize("kind", BRIDGES)
def test_a_bridge_that_cannot_be_imported_is_reported_and_not_suffered(kind, patient, examine, monkeypatch):
    code, said = BRIDGES[kind]
    patient.install_cards()
    patient.install_bridge(code)
    monkeypatch.setattr(machine, "IMPORT_SECONDS", 1.0 if kind == "hang" else 30.0)
    code, text, _ = examine()
    assert code == 1 and "cannot be imported" in text and said in text


def test_no_bridge(patient, examine):
    patient.install_cards()
    code, text, error = examine()
    assert code == 1 and "the bridge (habana_frameworks) is not installed" in error and "$PYTHON" in text


def test_pip_replaced_torch_explains_the_failed_import(patient, examine):
    patient.install_cards()
    patient.install_bridge("raise AssertionError('torch 2.6 needed')")
    patient.versions["torch"] = "2.9.1"
    code, text, error = examine()
    assert code == 1 and "(AssertionError: torch 2.6 needed)" in text
    assert "built for torch 2.6, and torch 2.9.1 is installed: pip replaced" in error and text.count("problem: ") == 1


def test_stock_torch_in_lazy_mode(healthy, examine):
    healthy.versions["torch"] = "2.6.0"
    assert examine()[0] == 0
    code, text, error = examine("--device", "hpu", "--lazy_mode", "true")
    assert code == 1 and "PT_HPU_LAZY_MODE=1: lazy" in text and "Gaudi build of torch only" in error


def test_a_flag_against_the_variable_is_refused_as_a_run_refuses_it(healthy, examine):
    healthy.patch.setenv("PT_HPU_LAZY_MODE", "0")
    assert examine("--device", "hpu", "--lazy_mode", "false")[0] == 0
    code, _, error = examine("--device", "hpu", "--lazy_mode", "true")
    assert code == 1 and "--lazy_mode true and PT_HPU_LAZY_MODE=0 contradict each other" in error
    assert examine("--device", "cpu", "--lazy_mode", "true")[0] == 0


def test_op_lists_and_variables_of_the_environment_are_told(healthy, examine, tmp_path):
    (tmp_path / "low.txt").write_bytes(b"add\r\nlinear\niadd\n")
    healthy.patch.setenv("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", str(tmp_path / "low.txt"))
    healthy.patch.setenv("PT_HPU_AUTOCAST_FP32_OPS_LIST", str(tmp_path / "none.txt"))
    healthy.patch.setenv("PT_HPU_PLACE_ON_CPU", "none")
    code, text, _ = examine()
    assert code == 0 and "low.txt: 3 lines, in place of the bridge's own list" in text
    assert r"never match: 1 'add\r'" in text and "has these names, and the bridge does not say so: iadd" in text
    assert "none.txt (not readable)" in text and "warns once and uses its own list" in text
    assert "PT_HPU_PLACE_ON_CPU none (none: an operator the card lacks is an error" in text


def test_without_device_the_chosen_one_is_examined(patient, examine, monkeypatch):
    monkeypatch.setattr(machine, "CHOOSE", "answer = 'cpu'")
    assert "device cpu (chosen automatically)" in examine("--lazy_mode", "false")[1]
    monkeypatch.setattr(machine, "CHOOSE", "raise OSError('torch is broken')")
    code, text, _ = examine("--lazy_mode", "false")
    assert code == 0 and "could not be told: OSError: torch is broken" in text


def test_a_torch_that_cannot_compute(patient, examine, monkeypatch):
    monkeypatch.setattr(machine, "TORCH", "raise ImportError('libtorch.so')")
    code, _, error = examine("--device", "cpu")
    assert code == 1 and "libtorch.so" in error
    patient.versions.clear()
    assert "torch is not installed" in examine("--device", "cpu")[2]


def test_cuda_and_ipu_say_why_not(patient, examine, monkeypatch):
    monkeypatch.setattr(machine, "TORCH", "answer = {'cuda': '12.8', 'available': False, 'count': 0}")
    smi = patient.folder / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, NVIDIA H200, 570.1, 143771 MiB'\n")
    smi.chmod(0o755)
    code, text, error = examine("--device", "cuda")
    assert code == 1 and "NVIDIA H200" in text and "though nvidia-smi works" in error
    assert examine("--device", "ipu")[0] == 1


CUDA_CASES = [
    ({"available": True, "cuda": "12.8"}, None, {}, None),
    ({"cuda": None}, "0, H200", {}, "built without CUDA"),
    ({"cuda": "12.8"}, "0, H200", {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES=''"),
    ({"cuda": "12.8"}, "0, H200", {}, "too old for CUDA 12.8"),
    ({"cuda": "12.8"}, None, {}, "nvidia-smi is missing or fails"),
]


@pytest.mark.parametrize(("probe", "smi", "environment", "cause"), CUDA_CASES)
def test_why_torch_has_no_gpu(probe, smi, environment, cause):
    found = check_cuda(probe, smi, environment)
    assert (not found) if cause is None else (cause in found[0].cause and found[0].blocking)


MODES = [
    ({}, (1, 19), "1", "unset, a run takes 1 (the default of software 1.19): lazy"),
    ({}, (1, 20), "1", "unset, a run takes 1 (the default of software 1.20): lazy"),
    ({}, (1, 21), "0", "unset, a run takes 0 (the default of software 1.21): eager"),
    ({}, None, "0", "unset, a run takes 0 (the release is unknown): eager"),
    ({"PT_HPU_LAZY_MODE": "1"}, (1, 23), "1", "=1: lazy"),
    ({"PT_HPU_LAZY_MODE": "0"}, (1, 19), "0", "=0: eager"),
    ({"PT_HPU_LAZY_MODE": "2"}, None, "2", "for debugging"),
    ({"PT_HPU_LAZY_MODE": "yes"}, None, "yes", "takes all but 0 for lazy"),
]


@pytest.mark.parametrize(("environment", "release", "mode", "text"), MODES)
def test_the_mode_and_where_it_comes_from(environment, release, mode, text):
    assert choose_mode(environment, release) == mode
    assert text in describe_mode(environment, release)
    notes = [p for p in check_mode(environment, release, "2.6.0+gitabc") if not p.blocking]
    assert bool(notes) == (mode not in {"0", "1"})


VISIBLE = {
    **dict.fromkeys(("0", "6", "0,1", "6,7", "4, 5,6,7", "3,2,1,0", "0,1,2,3,4,5,6,7"), None),
    **dict.fromkeys(("1,2", "0,4", "0,1,2", "2,3,4,5"), False),
    **dict.fromkeys(("", "8", "0,0", "a", "0;1", "-1"), True),
}


@pytest.mark.parametrize(("chosen", "blocking"), VISIBLE.items())
def test_which_sets_of_modules_are_allowed(chosen, blocking):
    found = check_modules({"HABANA_VISIBLE_MODULES": chosen})
    assert [problem.blocking for problem in found] == ([] if blocking is None else [blocking])


def test_a_module_chosen_by_hand_is_one_card_for_all():
    assert "HLS_MODULE_ID=3" in check_modules({"HLS_MODULE_ID": "3"})[0].cause
    assert check_modules({"HLS_MODULE_ID": "3", "LOCAL_RANK": "3"}) == []
    assert read_modules({}) is None and read_modules({"HABANA_VISIBLE_MODULES": "4,5"}) == {4, 5}


def test_op_lists_are_read_as_the_bridge_reads_them():
    assert split_lines("") == [] and split_lines("a\n\nb \r\n") == ["a", "", "b \r"] and split_lines("a") == ["a"]
    dirty, unknown = check_op_list("LIST", ["mm", "", " mm", "add_", "foo"], lambda names: ["foo"])
    assert "2 ''" in dirty.cause and "3 ' mm'" in dirty.cause and unknown.cause.endswith(": add_, foo")
    assert not dirty.blocking and check_op_list("LIST", ["mm"], lambda names: []) == []
    many = check_op_list("LIST", [f"x{i}" for i in range(9)], lambda names: names)
    assert many[0].cause.endswith("x0, x1, x2, x3, x4 and 4 more")


def test_a_list_that_is_no_text_is_not_readable(tmp_path):
    (tmp_path / "list").write_bytes(b"\xff\xfe")
    environment = {"PT_HPU_AUTOCAST_FP32_OPS_LIST": str(tmp_path / "list")}
    facts, problems = examine_op_lists(environment, machine.read_text, lambda names: [])
    assert len(facts) == 2 and "not readable" in facts[1].value and not problems[0].blocking


def test_versions_are_compared_by_major_and_minor():
    assert check_driver("1.21.3-abc", (1, 21)) == [] == check_driver(None, (1, 21)) == check_driver("odd", None)
    assert check_driver("1.22.0", (1, 21))[0].blocking
    assert check_replaced_torch("2.6.0a0+git1", (1, 20)) == [] == check_replaced_torch("3.1", (9, 9))
    assert check_replaced_torch("2.15.0", (1, 23))[0].blocking
    assert check_torch("2.10.0") == [] and check_torch("2.4.1")[0].blocking and check_torch(None)[0].blocking


def test_hl_smi_texts_become_cards_and_holders():
    cards = parse_query(query_output())
    assert [card.index for card in cards] == list(range(8)) and cards[0].module == 2 and cards[0].driver[:4] == "1.21"
    assert parse_query("0, HL-225, 1.21.0, 1, 1, N/A, N/A")[0].module is None
    listed, holders = parse_table(table_output(held=(1, 5)))
    assert len(listed) == 8 and [(h.card, h.pid) for h in holders] == [(1, 4712), (5, 4716)]
    for text in (
        "",
        "|",
        ",",
        "\0" * 9,
        query_output()[:100],
        "| " * 10000,
        "," * (len(QUERY) - 1),
        "٣, a, b, c, d, e, f",
    ):
        assert parse_query(text) == [] and parse_table(text) == ([], [])


def test_modules_that_are_not_here_cannot_run():
    cards = [Card(index=0, name="HL-225", module=0), Card(index=1, name="HL-225", module=1)]
    assert "cards here are 0, 1" in check_cards(cards, [], {6, 7})[0].cause
    assert check_cards(cards, [Holder(1, 5, "x")], {0}) == [] == check_cards([], [], None) == check_cards([], [], {1})


def test_device_files_and_who_has_them_open(tmp_path):
    for name in ("dev/accel/accel0", "dev/accel/accel10", "dev/accel/accel_controlD0", "dev/hl1", "dev/hl_controlD1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert machine.list_device_files(tmp_path / "dev") == ["/dev/hl1", "/dev/accel/accel0", "/dev/accel/accel10"]
    assert machine.list_device_files(tmp_path / "none") == []
    links = {"7/fd/3": "/dev/accel/accel2", "7/fd/4": "/dev/null", "8/fd/0": "/dev/accel/accel_controlD0"}
    for name, target in {**links, f"{os.getpid()}/fd/1": "/dev/hl0", "self/fd/1": "/dev/hl0"}.items():
        (tmp_path / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc" / name).symlink_to(target)
    (tmp_path / "proc" / "7" / "comm").write_text("python3\n")
    (tmp_path / "proc" / "9").mkdir()
    found = machine.list_open_files(tmp_path / "proc")
    assert found == {7: ("python3", ["/dev/accel/accel2"])}
    assert holders_of_files(found) == [Holder(2, 7, "python3")]
    assert isinstance(machine.list_open_files(), dict)


def test_a_report_without_facts_is_a_report():
    assert Report().format() == "\nno problems found\n"
    assert Report(problems=[Problem("a", "b", False)]).blocking == []


def run_doctor(*words, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "RANK"}
    return subprocess.run(
        [sys.executable, "-m", "dino.doctor", *words],
        cwd=ROOT,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_the_command_ends_with_0_where_the_device_runs():
    done = run_doctor("--device", "cpu")
    assert (done.returncode, done.stderr) == (0, "") and "no problems found" in done.stdout


def test_the_command_ends_with_1_and_names_the_missing_bridge(tmp_path):
    (tmp_path / "empty").mkdir()
    done = run_doctor("--device", "hpu", PATH=str(tmp_path / "empty"), PYTHONPATH="")
    assert done.returncode == 1 and "hl-smi" in done.stdout
    assert done.stderr.startswith("CheckFailed: hpu cannot run here: the bridge (habana_frameworks) is not installed")


def test_a_wrong_flag_ends_with_2_and_the_check_is_its_own_error():
    assert exit_code(lambda: main(["--device", "tpu"])) == 2
    assert CheckFailed.exit_code == 1
