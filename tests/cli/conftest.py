"""A machine to be examined, of which nothing is this one's."""

import os
import re
import textwrap

import pytest

from dino.cli.doctor import main
from dino.cli.session import exit_code
from dino.devices.hpu import software
from dino.doctor import machine
from tests.doctor.outputs import firmware_output, map_output, query_output, table_output

TORCH, BRIDGE = "2.6.0+hpu_1.21.2-76.gitabf798b", "1.21.0.555"
VENDORS = ("PT_", "HABANA_", "HLS_", "HCCL_", "TORCH_DEVICE", "SLURM_", "GC_", "RANK", "LOCAL_RANK")
KERNEL = {
    "sys/kernel/osrelease": "6.8.0-138-generic\n",
    "cmdline": "BOOT_IMAGE=/vmlinuz ro iommu=pt intel_iommu=on quiet\n",
    "cpuinfo": "vendor_id : GenuineIntel\n",
    "meminfo": "MemTotal: 1056 kB\nHugePages_Total:   15000\nHugePages_Free:    14000\nHugepagesize:       2048 kB\n",
}
ASKED = "import os; answer = {'garbled': 0, 'wrong': 0}; open(os.environ['SEEN'], 'w').write(json.dumps(dict(os.environ)))"


class Patient:
    """A machine with faked programs, packages, files and environment."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.patch = folder, monkeypatch
        self.files, self.versions, self.kernel, self.packages = (
            [],
            {"torch": TORCH},
            dict(KERNEL),
            [],
        )
        for name in ("bin", "site"):
            (folder / name).mkdir()
        for name in [name for name in os.environ if name.startswith(VENDORS)]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        monkeypatch.setenv("PYTHONPATH", str(folder / "site"))
        monkeypatch.setenv("SEEN", str(folder / "product.json"))
        monkeypatch.setattr(
            machine,
            "TORCH",
            "answer = {'unknown': [n for n in argument if n == 'iadd']}  # without torch: quick",
        )
        monkeypatch.setattr(machine, "PRODUCT", ASKED)
        monkeypatch.setattr(machine, "list_device_files", lambda: self.files)
        monkeypatch.setattr(machine, "list_open_files", dict)
        monkeypatch.setattr(machine, "read_kernel_file", lambda name: self.kernel.get(name, ""))
        monkeypatch.setattr(
            machine,
            "list_distributions",
            lambda words: [row for row in self.packages if re.fullmatch(words, row[0])],
        )
        monkeypatch.setattr(software, "find_version", lambda *names: self.versions.get(names[0]))

    def install_hl_smi(self, script):
        path = self.folder / "bin" / "hl-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def install_cards(self, driver="1.21.0-ca59b5a", held=(), name="HL-225", firmware="1.21.0"):
        answers = {
            "query": query_output(driver, name=name),
            "table": table_output(driver, held=held, name=name),
            "map": map_output(),
            "firmware": firmware_output(firmware),
        }
        for file, text in answers.items():
            (self.folder / f"{file}.txt").write_text(text)
        self.install_hl_smi(
            f'cd {self.folder}; case "$*" in "-Q index,module_id "*) cat map.txt;; -Q*) cat query.txt;; '
            "-L) cat firmware.txt;; *) cat table.txt;; esac"
        )

    def install_bridge(self, code="", version=BRIDGE):
        package = self.folder / "site" / "habana_frameworks" / "torch"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text(textwrap.dedent(code))
        (package / "core.py").touch()
        self.versions["habana-torch-plugin"] = version

    def set_up_host(self):
        for name in (
            "GC_KERNEL_PATH",
            "HABANA_PLUGINS_LIB_PATH",
            "HABANA_SCAL_BIN_PATH",
            "HABANA_LOGS",
        ):
            (self.folder / name).mkdir()
            self.patch.setenv(name, str(self.folder / name))


@pytest.fixture
def patient(tmp_path, monkeypatch):
    return Patient(tmp_path, monkeypatch)


@pytest.fixture
def healthy(patient):
    patient.install_cards()
    patient.install_bridge()
    patient.set_up_host()
    return patient


@pytest.fixture
def examine(capfd):
    """Run the command: its exit code, its report on one line, its last line on stderr."""

    def run(*words):
        code = exit_code(lambda: main(list(words) or ["--device", "hpu"]))
        out, err = capfd.readouterr()
        assert "Traceback" not in out + err
        assert (code, err) == (0, "") or (
            code == 1 and err.startswith("CheckFailed: ") and err.count("\n") == 1
        )
        return code, " ".join(out.split()), err

    return run
