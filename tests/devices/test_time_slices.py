"""Short time slices of a training process, and of the threads and processes that it starts."""

import ctypes
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dino.devices import time_slices
from dino.devices.time_slices import SLICE, Attributes, read_attributes, shorten_slices

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import json, os, torch
from dino.devices.cpu import CpuDevice
from dino.devices.time_slices import THREADS, read_attributes
def read():
    found = [read_attributes(int(thread)) for thread in os.listdir(THREADS)]
    return [(one.runtime, one.policy, one.nice) for one in found]
torch.set_num_threads(2)
torch.ones(200, 200) @ torch.ones(200, 200)
before = read()
CpuDevice("fp32").compile_train(None, None, 1)
print(json.dumps([before, read()]))
"""


def need_slices() -> None:
    attributes = read_attributes(0)
    if attributes is None or not attributes.runtime:
        pytest.skip("this kernel does not tell time slices (Linux 6.12 or newer does)")


def test_training_shortens_the_slices_of_all_threads_and_keeps_their_priority():
    need_slices()
    ended = subprocess.run(
        ["nice", "-n", "3", sys.executable, "-c", PROGRAM],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, after = json.loads(ended.stdout)
    assert len(after) == len(before) > 1
    assert {runtime for runtime, _, _ in after} == {SLICE}
    assert [rest for _, *rest in after] == [rest for _, *rest in before]
    assert {nice for _, _, nice in after} == {3}


class Kernel:
    """The two system calls, on a table of threads."""

    def __init__(self, threads, refuses=False):
        self.threads, self.refuses, self.asked = threads, refuses, []

    def syscall(self, number, thread, reference, *rest):
        attributes = reference._obj
        if self.refuses:
            return -1
        if number.value == 275:
            attributes.runtime, attributes.policy = self.threads[thread.value]
        else:
            self.asked.append((thread.value, attributes.runtime))
        return 0


@pytest.fixture
def host(monkeypatch, tmp_path):
    """A host with these threads."""

    def build(threads, machine="aarch64", **more):
        kernel = Kernel(threads, **more)
        for thread in threads:
            (tmp_path / str(thread)).mkdir()
        monkeypatch.setattr(time_slices, "THREADS", tmp_path)
        monkeypatch.setattr(time_slices.platform, "machine", lambda: machine)
        monkeypatch.setattr(time_slices.platform, "system", lambda: "Linux")
        monkeypatch.setattr(ctypes, "CDLL", lambda name: kernel)
        return kernel

    return build


def test_other_policies_shorter_slices_and_older_kernels_are_left_alone(host):
    usual, batch = 0, 3
    kernel = host({5: (3_000_000, usual), 6: (3_000_000, batch), 7: (50_000, usual), 8: (0, usual)})
    shorten_slices()
    assert kernel.asked == [(5, SLICE)]


def test_a_refusal_changes_nothing(host):
    kernel = host({5: (3_000_000, 0)}, refuses=True)
    shorten_slices()
    assert kernel.asked == [] and read_attributes(5) is None


def test_an_unknown_processor_is_not_asked(host, monkeypatch):
    host({5: (3_000_000, 0)}, machine="riscv64")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("asked"))
    shorten_slices()


def test_a_c_library_without_system_calls_is_left_as_it_is(host, monkeypatch):
    host({5: (3_000_000, 0)})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    shorten_slices()
    assert read_attributes(5) is None


def test_the_struct_has_the_kernels_first_size():
    assert ctypes.sizeof(Attributes) == 48
