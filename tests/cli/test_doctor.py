"""The doctor: whatever hl-smi, the bridge and the environment are like, it says so and ends with 0
or 1."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dino.cli.doctor import main
from dino.cli.session import exit_code
from dino.doctor import machine
from dino.doctor.examine import examine as examine_machine
from dino.doctor.report import Case
from dino.errors import CheckFailed
from tests import hpu_simulator
from tests.cli.conftest import BRIDGE, TORCH
from tests.doctor.outputs import table_output

ROOT = Path(__file__).resolve().parents[2]


def test_a_healthy_machine_with_eight_cards(healthy, examine):
    code, text, _ = examine()
    assert code == 0 and text.endswith("no problems found"), text
    for found in (
        "device hpu (as asked)",
        f"torch {TORCH}",
        f"mode lazy: torch {TORCH} is the vendor's build",
        "torch build the vendor's",
        f"bridge {BRIDGE}, can be imported",
        "hl-smi works",
        "driver 1.21.0-ca59b5a",
        "cards 8",
        "card 7: HL-225, module 1, 768 MiB of 98304 MiB used, load 0 %",
        "held by no process",
        "kernel 6.8.0-138-generic",
        "huge pages 15000 of 2048 kB, 14000 free",
        "firmware 1.21.0 on 8 cards (SPI)",
        "product correct, on the card in lazy mode",
    ):
        assert found in text


def test_facts_are_aligned(healthy, capsys):
    main(["--device", "hpu"])
    facts = capsys.readouterr().out.split("\n\n")[0].splitlines()
    width = len("vendor's parts") + 2
    assert all(line[width - 1] == " " and line[width] != " " for line in facts)


def asked_of_the_card(patient):
    """The environment in which the product was tried."""
    return json.loads((patient.folder / "product.json").read_text())


def test_one_card_held_is_a_note_with_the_process_and_another_is_tried(healthy, examine):
    healthy.install_cards(held=(3,))
    code, text, _ = examine()
    assert code == 0
    assert "held by card 3: python3.10 (pid 4714)" in text and "product correct" in text
    assert (
        "note: in use: card 3: python3.10 (pid 4714); 7 of 8 cards are not held" in text
        and "acquire failed" in text
    )


def test_all_cards_held_cannot_run_and_none_is_tried(healthy, examine):
    healthy.install_cards(held=range(8))
    code, text, error = examine()
    assert (
        code == 1
        and "all cards are in use" in error
        and "4711" in error
        and "Device acquire failed" in text
    )
    assert "product not tried on a card" in text and not (healthy.folder / "product.json").exists()


def test_the_chosen_modules_are_the_cards_that_count(healthy, examine):
    healthy.install_cards(held=(3,))
    healthy.patch.setenv("HABANA_VISIBLE_MODULES", "5")  # of card 3
    assert examine()[0] == 1
    healthy.patch.setenv("HABANA_VISIBLE_MODULES", "6")
    code, text, _ = examine()
    assert code == 0 and text.endswith("no problems found")


def test_the_product_is_tried_on_the_cards_of_the_slurm_job(healthy, examine):
    healthy.patch.setenv("SLURM_JOB_GPUS", "4")
    code, text, _ = examine()
    assert code == 0 and "a run takes HABANA_VISIBLE_MODULES=6" in text
    assert asked_of_the_card(healthy)["HABANA_VISIBLE_MODULES"] == "6"
    healthy.patch.setenv("SLURM_JOB_GPUS", "9")
    code, text, _ = examine()
    assert code == 1 and "SLURM_JOB_GPUS=9" in text and "product not tried on a card" in text


def test_without_hl_smi_processes_the_open_files_tell_who_holds_a_card(
    healthy, examine, monkeypatch
):
    monkeypatch.setattr(
        machine,
        "list_open_files",
        lambda: {99: ("python3", ["/dev/accel/accel2", "/dev/accel/accel2"])},
    )
    code, text, _ = examine()
    assert code == 0 and "held by card 2: python3 (pid 99)" in text


def test_a_driver_of_another_release_is_a_note_beside_a_right_product(healthy, examine):
    healthy.install_cards(driver="1.24.0-0a1b2c3", firmware="1.24.0")
    healthy.install_bridge(version="1.23.0.695")
    healthy.versions["torch"] = "2.9.0+hpu.1.23.0.695"
    code, text, _ = examine()
    assert (
        code == 0
        and "note: the driver is 1.24.0-0a1b2c3 and the bridge is of software 1.23" in text
    )
    assert (
        "containers train with it in public" in text
        and "the product on the card was correct" in text
    )


def test_a_product_that_fails_stops_a_run_and_names_the_pair(healthy, examine, monkeypatch):
    healthy.install_cards(driver="1.24.0-0a1b2c3")
    failure = "synStatus=26 [Generic failure] Graph compile failed.\\n[Rank:0] backtrace line"
    monkeypatch.setattr(machine, "PRODUCT", f"raise RuntimeError('{failure}')")
    code, text, error = examine()
    assert (
        code == 1
        and "the card's compiler failed" in error
        and "Graph compile failed. [Rank:0] backtrace" in error
    )
    assert (
        "product failed in lazy mode" in text
        and "the product on the card failed, see there" in text
    )


PRODUCTS = {
    "hang": ("import time; time.sleep(60)", "no answer in 1 s"),
    "crash": ("import os; os.abort()", "killed by SIGABRT"),
    "garbled": (
        "answer = {'garbled': 7, 'wrong': 9}",
        "wrong numbers: 7 of those only copied",
    ),
}


@pytest.mark.parametrize("kind", PRODUCTS)
def test_whatever_the_product_does_the_doctor_goes_on(kind, healthy, examine, monkeypatch):
    code, said = PRODUCTS[kind]
    monkeypatch.setattr(machine, "PRODUCT", code)
    monkeypatch.setattr(machine, "PRODUCT_SECONDS", 1.0)
    code, text, _ = examine()
    assert code == 1 and said in text


MODES = {
    (): ("1", False),
    ("--lazy_mode", "true"): ("1", False),
    ("--lazy_mode", "false"): ("0", False),
    ("--compile",): ("0", True),
}


@pytest.mark.parametrize("words", MODES, ids=" ".join)
def test_the_bridge_and_the_card_are_tried_in_the_mode_of_the_run(words, healthy, examine):
    healthy.install_bridge(
        "import os, pathlib; pathlib.Path(os.environ['SEEN'] + '2').write_text(os.environ['PT_HPU_LAZY_MODE'])"
    )
    healthy.patch.setattr(
        machine, "PRODUCT", machine.PRODUCT + "\nassert argument is " + str(MODES[words][1])
    )
    code, text, _ = examine("--device", "hpu", *words)
    assert code == 0, text
    assert asked_of_the_card(healthy)["PT_HPU_LAZY_MODE"] == MODES[words][0]
    assert (healthy.folder / "product.json2").read_text() == MODES[words][0]


def test_the_product_can_be_left_out(healthy, examine):
    code, text, _ = examine("--device", "hpu", "--probe", "false")
    assert code == 0 and "product not tried on a card: --probe false" in text
    assert not (healthy.folder / "product.json").exists()


HL_SMI = {
    "garbage": (
        r"printf '\000\377|,,|\n| 1 2 3\n,,,,,,\nDriver Version:\n'",
        "its output is not understood",
    ),
    "silence": ("exit 0", "its output is not understood"),
    "failure": ("echo 'driver not loaded' >&2; exit 3", "exit code 3: driver not loaded"),
    "no card": ("echo 'no AIPs available'; exit 1", "exit code 1: no AIPs available"),
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
    with monkeypatch.context() as without_card:
        without_card.setattr(
            machine, "PRODUCT", "raise RuntimeError('synStatus=8 [Device not found]')"
        )
        code, text, _ = examine()
    assert code == 1 and "problem: no cards are visible here" in text and said in text
    patient.files = ["/dev/accel/accel0"]
    code, text, _ = examine()
    assert (
        code == 0
        and said in text
        and "cards 1" in text
        and "note: " in text
        and "product correct" in text
    )
    assert time.monotonic() - began < 55  # the program that hangs was not waited for


def test_a_card_that_can_be_used_and_not_seen_is_a_note(patient, examine):
    patient.install_bridge()
    code, text, _ = examine()
    assert code == 0 and "product correct" in text and "note: no cards are visible here" in text


def test_whoever_tries_the_card_later_is_not_told_that_there_is_none(patient):
    patient.install_bridge()
    report = examine_machine("hpu", Case(os.environ, product="later"))
    assert ("product", "not tried on a card: that comes later") in report.facts
    assert [each.blocking for each in report.problems if "no cards are visible" in each.cause] == [
        False
    ]


def test_an_hl_smi_without_the_query_still_gives_cards_and_driver(patient, examine):
    patient.install_bridge()
    (patient.folder / "table.txt").write_text(table_output(held=(0,)))
    patient.install_hl_smi(
        f'if [ "$1" = -Q ]; then exit 1; else cat {patient.folder}/table.txt; fi'
    )
    code, text, _ = examine()
    assert (
        code == 0
        and "cards 8" in text
        and "driver 1.21.0" in text
        and "card 0: python3.10 (pid 4711)" in text
    )


BRIDGES = {
    "crash": ("import os; os.abort()", "killed by SIGABRT"),
    "hang": ("import time; time.sleep(60)", "no answer in 1 s"),
    "library": (
        "raise ImportError('libSynapse.so: cannot open shared object file')",
        "a library of the Gaudi software",
    ),
    "symbol": (
        "raise ImportError('undefined symbol: _ZN3c10')",
        "pip replaced the container's torch",
    ),
    "acquire": (
        "raise RuntimeError('synStatus 26 Device acquire failed')",
        "another process holds it",
    ),
    "other": ("raise ValueError('odd')", "is installed but cannot be imported: ValueError: odd"),
    "exit": ("import sys; sys.exit()", "it ended without an answer"),
    "noise": (
        "print('dino.doctor: nonsense')\nimport os; os._exit(0)",
        "it ended without an answer",
    ),
}


@pytest.mark.parametrize("kind", BRIDGES)
def test_a_bridge_that_cannot_be_imported_is_reported_and_not_suffered(
    kind, patient, examine, monkeypatch
):
    code, said = BRIDGES[kind]
    patient.install_cards()
    patient.install_bridge(code)
    monkeypatch.setattr(machine, "IMPORT_SECONDS", 1.0 if kind == "hang" else 30.0)
    code, text, _ = examine()
    assert code == 1 and "cannot be imported" in text and said in text


def test_a_library_that_prints_at_its_end_does_not_hide_the_answer(healthy, examine):
    healthy.install_bridge(
        "import atexit; atexit.register(print, '==== HABANA PT BRIDGE CONFIGURATION ====')"
    )
    assert examine()[0] == 0


def test_no_bridge(patient, examine):
    patient.install_cards()
    code, text, error = examine()
    assert (
        code == 1
        and "the bridge (habana_frameworks.torch) is not installed" in error
        and "$PYTHON" in text
    )


def test_another_part_of_the_vendors_software_is_no_bridge(patient, examine):
    patient.install_cards()
    (patient.folder / "site" / "habana_frameworks" / "mediapipe").mkdir(parents=True)
    patient.packages.append(("habana-media-loader", "1.24.1.482", str(patient.folder)))
    code, text, error = examine()
    assert (
        code == 1
        and "is not installed" in error
        and "vendor's parts habana-media-loader 1.24.1.482" in text
    )


def test_pip_replaced_torch_explains_the_failed_import(patient, examine):
    patient.install_cards()
    patient.install_bridge("raise AssertionError('torch 2.6 needed')")
    patient.versions["torch"] = "2.9.1"
    code, text, error = examine()
    assert code == 1 and "(AssertionError: torch 2.6 needed)" in text
    assert (
        "built for torch 2.6, but torch 2.9.1 is installed: pip replaced" in error
        and text.count("problem: ") == 1
    )


def test_a_bridge_that_takes_a_torch_is_believed(healthy, examine):
    healthy.versions["torch"] = "2.8.0+hpu_1.21.9-1.git0000000"
    code, text, _ = examine()
    assert code == 0 and text.endswith("no problems found")


STOCK = """
import os
assert os.environ['PT_HPU_LAZY_MODE'] == '0', 'Stock PyTorch version is not supported in Lazy mode'
"""


def test_upstream_torch_is_compiled_or_eager_and_never_lazy(healthy, examine):
    healthy.install_bridge(STOCK, version="1.24.0.1007")
    healthy.install_cards(driver="1.24.0-0a1b2c3", firmware="1.24.0")
    healthy.versions["torch"] = "2.10.0+cpu"
    code, text, _ = examine()
    assert (
        code == 0
        and text.endswith("no problems found")
        and "product correct, on the card in compiled mode" in text
    )
    code, text, error = examine("--device", "hpu", "--lazy_mode", "true")
    assert (
        code == 1
        and "mode lazy: --lazy_mode true" in text
        and "lazy mode needs the vendor's build of torch" in error
    )


def test_flags_that_a_run_refuses_are_refused(healthy, examine):
    healthy.patch.setenv("PT_HPU_LAZY_MODE", "0")
    assert examine("--device", "hpu", "--lazy_mode", "false")[0] == 0
    code, _, error = examine("--device", "hpu", "--lazy_mode", "true")
    assert code == 1 and "--lazy_mode true and PT_HPU_LAZY_MODE=0 contradict each other" in error
    assert examine("--device", "cpu", "--lazy_mode", "true")[0] == 0


def test_what_is_missing_of_the_hosts_set_up_is_told_in_notes(healthy, examine):
    healthy.kernel.update(cmdline="quiet\n", meminfo="HugePages_Total: 0\n")
    healthy.patch.delenv("GC_KERNEL_PATH")
    (healthy.folder / "file").touch()
    healthy.patch.setenv("HABANA_LOGS", str(healthy.folder / "file" / "logs"))
    healthy.packages += [("opencv-python", "4.1", "/a"), ("opencv-python-headless", "4.2", "/a")]
    healthy.packages += [
        ("habana-torch-plugin", "1.21.0", "/a"),
        ("habana-media-loader", "1.24.1.482", "/a"),
    ]
    healthy.install_cards(firmware="1.19.1")
    code, text, _ = examine()
    assert code == 0 and text.count("note: ") == 7 and "problem: " not in text
    for word in (
        "iommu=pt",
        "HugePages_Total",
        "GC_KERNEL_PATH is",
        "HABANA_LOGS=",
        "both install cv2",
        "several rel",
        "1.19.1",
    ):
        assert word in text


def test_op_lists_and_variables_of_the_environment_are_told(healthy, examine, tmp_path):
    (tmp_path / "low.txt").write_bytes(b"add\r\nlinear\niadd\n")
    healthy.patch.setenv("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", str(tmp_path / "low.txt"))
    healthy.patch.setenv("PT_HPU_AUTOCAST_FP32_OPS_LIST", str(tmp_path / "none.txt"))
    healthy.patch.setenv("PT_HPU_PLACE_ON_CPU", "none")
    code, text, _ = examine()
    assert code == 0 and "low.txt: 3 lines, instead of the bridge's own list" in text
    assert (
        r"never match: 1 'add\r'" in text
        and "has these names, and the bridge does not report it: iadd" in text
    )
    assert "none.txt (not readable)" in text and "warns once and uses its own list" in text
    assert "PT_HPU_PLACE_ON_CPU none (none: an operator that the card lacks is an error" in text


def test_without_device_the_chosen_one_is_examined(patient, examine, monkeypatch):
    monkeypatch.setattr(machine, "CHOOSE", "answer = 'cpu'")
    assert "device cpu (chosen automatically)" in examine("--lazy_mode", "false")[1]
    monkeypatch.setattr(machine, "CHOOSE", "raise OSError('torch is broken')")
    code, text, _ = examine("--lazy_mode", "false")
    assert code == 0 and "could not be determined: OSError: torch is broken" in text


def test_a_torch_that_cannot_compute(patient, examine, monkeypatch):
    monkeypatch.setattr(machine, "TORCH", "raise ImportError('libtorch.so')")
    code, _, error = examine("--device", "cpu")
    assert code == 1 and "libtorch.so" in error
    patient.versions.clear()
    assert "torch is not installed" in examine("--device", "cpu")[2]


def test_cuda_and_ipu_say_why_not(patient, examine, monkeypatch):
    monkeypatch.setattr(
        machine, "TORCH", "answer = {'cuda': '12.8', 'available': False, 'count': 0}"
    )
    smi = patient.folder / "bin" / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '0, NVIDIA H200, 570.1, 143771 MiB'\n")
    smi.chmod(0o755)
    code, text, error = examine("--device", "cuda")
    assert code == 1 and "NVIDIA H200" in text and "though nvidia-smi works" in error
    assert examine("--device", "ipu")[0] == 1


def test_the_report_for_programs_names_no_path_host_or_user(healthy, capsys, monkeypatch):
    healthy.patch.setenv("USER", "janedoe")
    healthy.patch.setenv("MASTER_ADDR", "node17.lab.example")
    healthy.patch.setenv("PT_HPU_AUTOCAST_FP32_OPS_LIST", "/home/Jane Doe/no list.txt")
    monkeypatch.setattr(
        machine, "list_open_files", lambda: {9: ("janedoe_train", ["/dev/accel/accel2"])}
    )
    main(["--device", "hpu", "--json", str(healthy.folder / "report.json")])
    assert "janedoe_train" in capsys.readouterr().out  # for the one who sits here
    text = (healthy.folder / "report.json").read_text()
    report = json.loads(text)
    assert {"name": "bridge", "value": f"{BRIDGE}, can be imported"} in report["facts"]
    assert all(set(problem) == {"cause", "remedy", "blocking"} for problem in report["problems"])
    for secret in ("/", "jane", "Jane", "Doe", "node17", "lab.example", "no list"):
        assert secret not in text.replace("and/or", ""), secret


def test_a_dash_gives_the_report_for_programs_alone(healthy, capsys):
    main(["--device", "hpu", "--json", "-"])
    assert {fact["name"] for fact in json.loads(capsys.readouterr().out)["facts"]} >= {
        "device",
        "mode",
        "product",
    }


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


def test_where_torch_cannot_be_imported_the_command_still_tells_and_ends_with_1(tmp_path):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        "raise ImportError('libtorch_cpu.so: cannot open shared object')"
    )
    done = run_doctor("--device", "hpu", PATH=str(tmp_path), PYTHONPATH=str(tmp_path))
    assert done.returncode == 1 and "hl-smi" in done.stdout, done.stderr
    assert (
        "torch is installed but cannot compute on the CPU: ImportError: libtorch_cpu.so"
        in " ".join(done.stdout.split())
    )
    assert "the bridge (habana_frameworks.torch) is not installed" in done.stdout
    assert (
        done.stderr.startswith("CheckFailed: hpu cannot run here: ")
        and done.stderr.count("\n") == 1
    )


@pytest.mark.skipif(
    hpu_simulator.why_unavailable() is not None, reason=str(hpu_simulator.why_unavailable())
)
def test_the_product_is_right_on_the_simulated_card():
    environment = {
        **os.environ,
        "PYTHONPATH": f"{hpu_simulator.PACKAGE}:{ROOT}",
        "PT_HPU_LAZY_MODE": "0",
    }
    assert machine.probe(machine.PRODUCT, environment, False, seconds=400) == (
        {"garbled": 0, "wrong": 0},
        None,
    )


def test_a_wrong_flag_ends_with_2_and_the_check_is_its_own_error():
    assert exit_code(lambda: main(["--device", "tpu"])) == 2
    assert CheckFailed.exit_code == 1
