"""A card as the house sees it: opened early or late, resumed, with its lists followed, and its
errors explained."""

import importlib
import json
import logging
import os
import sys

import pytest
import torch

from dino.cli.options import parse
from dino.cli.session import exit_code
from dino.devices import open_device
from dino.devices.hpu import device as hpu
from dino.devices.hpu import environment
from dino.devices.hpu.device import HpuDevice, choose_pinning
from dino.errors import DeviceError
from dino.training.config import TrainConfig
from tests import hpu_simulator
from tests.running import SERVER, TINY, make_images, on_simulated_card, run_alone, state_of

simulated = pytest.mark.skipif(
    hpu_simulator.why_unavailable() is not None,
    reason=f"no simulated hpu: {hpu_simulator.why_unavailable()}",
)


def open_as(*words):
    options = parse(TrainConfig, ["--device", "hpu", *words])
    return open_device(options.device, precision=options.precision)


def in_process(target, folder, **variables):
    """What a function says in a process of its own that finds a simulated card; gives its exit code
    and its lines."""
    output = folder / "said.txt"
    process = SERVER.Process(target=_run_and_write, args=(target, str(output), variables))
    process.start()
    process.join(120)
    return process.exitcode, output.read_text()


def _run_and_write(target, output, variables):
    os.environ.update(variables)
    sys.stderr = open(output, "w", encoding="utf-8", buffering=1)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(message)s", force=True)
    on_simulated_card()
    sys.exit(exit_code(target))


def test_fp16_and_a_missing_bridge_are_refused(monkeypatch):
    monkeypatch.setattr(hpu, "is_bridge_installed", lambda: True)
    with pytest.raises(DeviceError, match="`precision` fp16 needs `device` cuda"):
        HpuDevice("fp16")
    monkeypatch.setattr(hpu, "is_bridge_installed", lambda: False)
    with pytest.raises(DeviceError, match="not installed; start from a Gaudi container"):
        HpuDevice("fp32")


@pytest.mark.parametrize(
    "failure", [ImportError("no module"), AssertionError("built for torch 2.5"), OSError("lib.so")]
)
def test_a_bridge_that_cannot_be_imported_is_one_line(monkeypatch, failure):
    def refuse(name):
        raise failure

    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(hpu, "is_bridge_installed", lambda: True)
    monkeypatch.setattr(hpu.importlib, "import_module", refuse)
    with pytest.raises(
        DeviceError,
        match=rf"the Habana bridge cannot be imported \({failure}\); `python -m dino.doctor`",
    ):
        HpuDevice("fp32")


@pytest.mark.parametrize(
    ("version", "pins"),
    [
        ("2.5.1a0+git354fc07", "hpu"),
        ("2.6.0+hpu_1.21.2-76.gitabf798b", "hpu"),
        ("2.7.1+hpu.1.22.2.32.git6dbe0a4", True),
        ("2.10.0a0+gitc1e5ed4", True),
        (
            "2.6.0+cpu",
            True,
        ),  # upstream's knows cuda alone, and would look for it where it is told of another
        ("2.14.1", True),
    ],
)
def test_torch_before_2_7_is_told_for_which_device_to_pin(version, pins):
    assert choose_pinning(version) is pins or choose_pinning(version) == pins == "hpu"


def explain(error, *, compiles):
    device = object.__new__(HpuDevice)
    device.compiles = compiles
    return device.explain(error)


def test_failures_of_the_card_are_explained():
    held = RuntimeError("synStatus=26 [Generic failure] Device acquire failed.")
    assert explain(held, compiles=True) == explain(held, compiles=False)
    assert explain(held, compiles=False).startswith(
        "the card cannot be acquired: another process holds it"
    )
    assert explain(RuntimeError("shapes differ"), compiles=True) is None


def test_a_network_that_does_not_compile_names_the_way_without_compiling():
    def refuse(graph, inputs):
        raise RuntimeError("no kernel for this")

    with pytest.raises(RuntimeError) as caught:
        torch.compile(lambda x: x + 1, backend=refuse)(torch.ones(2))
    explained = explain(caught.value, compiles=True)
    assert (
        explained.startswith("the network does not compile (") and "no kernel for this" in explained
    )
    assert explained.endswith("; `lazy_mode` false trains it uncompiled") and "\n" not in explained
    assert explain(caught.value, compiles=False) is None


def test_a_graph_that_the_cards_compiler_refuses_names_both_remedies():
    refused = RuntimeError("Graph compile failed. synStatus=26 [Generic failure]")
    assert "GC_KERNEL_PATH" in explain(refused, compiles=False)
    assert (
        explain(refused, compiles=True)
        == f"{explain(refused, compiles=False)}; `lazy_mode` false trains it uncompiled"
    )


def say_lists():
    logging.info(open_as("--hmp").describe())
    logging.info(environment.read_own_lists(os.environ)[environment.LISTS[1]].replace("\n", " "))


@simulated
def test_the_first_line_says_which_lists_decide(tmp_path):
    code, said = in_process(say_lists, tmp_path, TMPDIR="/var/tmp")
    assert code == 0, said
    assert "hpu, ops, compiled mode, op lists ops_bf16.txt, ops_fp32.txt\n" in said
    assert said.endswith("binary_cross_entropy cross_entropy_loss embedding log_softmax softmax\n")


def say_own_lists():
    logging.info(open_as("--precision", "bf16", "--lazy_mode", "true").describe())
    with torch.autocast("hpu", dtype=torch.bfloat16):
        logging.info((torch.ones(2, 2, device="hpu") @ torch.ones(2, 2, device="hpu")).dtype)


@simulated
def test_a_users_own_list_reaches_the_bridge_wherever_it_lies(tmp_path):
    (tmp_path / "mine").write_text("linear\n")
    code, said = in_process(
        say_own_lists, tmp_path, **{environment.LISTS[0]: str(tmp_path / "mine")}
    )
    assert code == 0, said
    assert f"hpu, bf16, lazy mode, op lists {tmp_path}/mine\ntorch.float32\n" in said


@simulated
def test_without_lists_the_vendors_decide(tmp_path):
    code, said = in_process(say_own_lists, tmp_path)
    assert code == 0, said
    assert "hpu, bf16, lazy mode, the vendor's op lists\ntorch.bfloat16\n" in said


def lose_lists():
    hpu.give_lists = lambda *_, **__: {}
    open_as("--hmp", "--lazy_mode", "false")


@simulated
def test_lists_that_do_not_reach_the_bridge_end_the_run(tmp_path):
    code, said = in_process(lose_lists, tmp_path)
    assert code == 2
    assert (
        "DeviceError: the bridge does not follow the op lists: rsub ran in float32 instead of bfloat16;"
        in said
    )


def open_in_notebook():
    importlib.import_module("habana_frameworks.torch")  # as `import torch` does from 1.21 on
    for words in ((), ("--precision", "bf16"), ("--lazy_mode", "false")):
        logging.info(open_as(*words).describe())
    open_as("--lazy_mode", "true")


@simulated
def test_a_bridge_that_torch_has_imported_is_used_as_it_is(tmp_path):
    code, said = in_process(
        open_in_notebook, tmp_path, PT_HPU_LAZY_MODE="0", PT_HPU_FORCE_TANH_FOR_GELU="1"
    )
    assert code == 2
    assert (
        "hpu, fp32, compiled mode\n" in said
        and "hpu, bf16, compiled mode, the vendor's op lists\n" in said
    )
    assert "hpu, fp32, eager mode\n" in said
    assert (
        "DeviceError: --lazy_mode true: the Habana bridge is imported already, in eager mode; import dino"
        in said
    )


def test_the_bridge_tells_its_mode_under_this_name(shared_facts):
    facts = json.loads((shared_facts / "habana_api.json").read_text())
    assert facts["habana_frameworks.torch.utils.internal.is_lazy"]["args"] == []


@simulated
def test_an_evaluation_compiles_nothing(tmp_path):
    code, said = in_process(open_to_evaluate, tmp_path)
    assert code == 0 and said.endswith("\nhpu, fp32, eager mode, None\n")


def open_to_evaluate():
    device = open_device(parse(TrainConfig, ["--device", "hpu"]).device)
    logging.info("%s, %s", device.describe(), device.caution)


@simulated
def test_a_resumed_run_keeps_its_mode_until_a_flag_changes_it(tmp_path):
    """Over a run on the CPU in between too, which has no modes."""
    images, card = make_images(tmp_path / "images", 8), ("--device", "hpu")
    words = ("--data_path", images, "--output_dir", tmp_path / "run")
    more = (
        (*card, "--lazy_mode", "false"),
        ("--device", "cpu"),
        card,
        (*card, "--lazy_mode", "true"),
    )
    first, _, kept, changed = results = [
        run_alone(
            tmp_path,
            "main_dino",
            *TINY,
            *words,
            "--epochs",
            epochs,
            *said,
            prepare=on_simulated_card,
        )
        for epochs, said in enumerate(more, start=1)
    ]
    assert [result.code for result in results] == [0] * len(more), [
        result.text for result in results
    ]
    assert ["eager mode" in first.text, "eager mode" in kept.text] == [True, True]
    assert "python -m dino.verify" in kept.text and "mode changed" not in kept.text
    assert "mode changed since the checkpoint: eager -> lazy (--lazy_mode true)" in changed.text
    assert "python -m dino.verify" not in changed.text
    assert state_of(tmp_path / "run")["resume"]["mode"] == "lazy"
