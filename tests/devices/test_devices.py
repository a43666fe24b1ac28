"""Which device is chosen, and what is said when it cannot be had."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dino import devices
from dino.cli import pretrain
from dino.cli.options import parse
from dino.cli.session import exit_code
from dino.devices import choose_device, has_batch_norm, open_device
from dino.errors import DeviceError, OptionError
from dino.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def machine(monkeypatch):
    """Pretend that a bridge is installed and that a GPU is there, or not."""

    def build(*, bridge, gpus):
        monkeypatch.setattr(devices, "is_bridge_installed", lambda: bridge)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)

    return build


def open_as(*words, **more):
    options = parse(TrainConfig, list(words))
    return open_device(options.device, precision=options.precision, **more)


@pytest.mark.parametrize(
    ("bridge", "gpus", "chosen"),
    [(True, 1, "hpu"), (True, 0, "hpu"), (False, 1, "cuda"), (False, 0, "cpu")],
)
def test_without_a_wish_the_bridge_comes_first_then_the_gpu(machine, bridge, gpus, chosen):
    machine(bridge=bridge, gpus=gpus)
    assert choose_device(None) == chosen


def test_on_a_mac_the_first_line_says_that_the_cpu_runs(machine, monkeypatch, capsys):
    machine(bridge=False, gpus=0)
    monkeypatch.setattr(sys, "platform", "darwin")
    devices._explain_mac.cache_clear()
    assert exit_code(lambda: pretrain.main(["--data_path", "nowhere"])) == 2
    text = capsys.readouterr().out
    assert text.startswith("MPS, the GPU of a Mac, is not supported: the CPU runs\n")
    assert choose_device(None) == choose_device("cpu") == "cpu"
    assert "MPS" not in capsys.readouterr().out  # once
    devices._explain_mac.cache_clear()
    exit_code(lambda: pretrain.main(["--data_path", "nowhere", "--device", "cpu"]))
    assert "MPS" not in capsys.readouterr().out


@pytest.mark.parametrize("asked", ["hpu", "cuda", "cpu", "ipu"])
def test_a_wish_is_followed_whatever_is_there(machine, asked):
    machine(bridge=True, gpus=1)
    assert choose_device(asked) == asked


def test_only_the_ipu_has_no_batch_norm_in_the_head(machine):
    machine(bridge=False, gpus=0)
    assert has_batch_norm(None) and has_batch_norm("hpu") and not has_batch_norm("ipu")


def test_importing_the_room_imports_neither_torch_nor_a_device():
    code = "import sys, dino.devices; print([m for m in sys.modules if m == 'torch' or m.endswith(('.cpu', '.device'))])"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.returncode) == ("[]\n", 0), ended.stderr


def test_the_cpu_opens_in_the_asked_format(machine):
    machine(bridge=False, gpus=0)
    device = open_as("--precision", "bf16")
    assert (device.name, device.torch_device.type, device.collective_backend) == (
        "cpu",
        "cpu",
        "gloo",
    )
    assert device.describe() == "cpu, bf16"
    assert open_as().describe() == "cpu, fp32"


def test_an_evaluation_without_precision_flags_computes_in_fp32(machine):
    machine(bridge=False, gpus=0)
    assert open_device(parse(TrainConfig, []).device).describe() == "cpu, fp32"


@pytest.mark.parametrize(
    ("words", "local_rank", "gpus", "named"),
    [
        (
            "--device hpu",
            0,
            0,
            r"`device` hpu: the Habana bridge .* not installed; .*`device` cuda or cpu",
        ),
        ("--device cuda", 0, 0, r"`device` cuda: torch finds no GPU here .* `device` cpu"),
        ("--device cuda", 2, 2, r"process 2 on this host has no GPU: there are 2"),
        (
            "--device ipu",
            0,
            0,
            r"`device` ipu needs PopTorch of the Poplar SDK, which is not installed; use `device` cpu",
        ),
        (
            "--device cpu --precision fp16",
            0,
            0,
            r"`precision` fp16 needs `device` cuda; use bf16 or fp32",
        ),
    ],
)
def test_a_device_that_cannot_be_had_is_one_line_with_a_remedy(
    machine, words, local_rank, gpus, named
):
    machine(bridge=False, gpus=gpus)
    with pytest.raises(DeviceError, match=f"^{named}") as caught:
        open_as(*words.split(), local_rank=local_rank)
    assert caught.value.exit_code == 2


def test_op_lists_are_named_and_each_decision_told_once(machine, caplog):
    machine(bridge=False, gpus=0)
    caplog.set_level("INFO")
    device = open_as("--device", "cpu", "--hmp", "--hmp-verbose")
    device.casting.close()
    assert device.describe() == "cpu, ops"
    told = [line for line in caplog.messages if line.startswith("op ")]
    assert len(told) == len(set(told)) == 25
    assert {"op linear: bf16", "op softmax: fp32", "op cat: the widest of its inputs"} <= set(told)


def test_lazy_mode_elsewhere_changes_nothing(machine):
    machine(bridge=False, gpus=0)
    assert open_as("--device", "cpu", "--lazy_mode", "true", "--compile").name == "cpu"


def test_an_unknown_device_is_refused_with_the_known_ones():
    with pytest.raises(
        OptionError, match="--device must be one of hpu, cuda, cpu, ipu \\(got 'tpu'\\)"
    ):
        parse(TrainConfig, ["--device", "tpu"])


def test_compile_is_what_the_flag_says_on_the_cpu(machine):
    machine(bridge=False, gpus=0)
    assert [open_as("--device", "cpu", *words).compiles for words in ((), ("--compile",))] == [
        False,
        True,
    ]
