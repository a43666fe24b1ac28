"""Which mode a card runs in, what its environment holds before the bridge is imported, and what its errors mean."""

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dino.devices.hpu import device as hpu
from dino.devices.hpu.device import LAZY, LISTS, HpuDevice, choose_environment, complete_environment
from dino.devices.op_lists import OpLists
from dino.errors import DeviceError

LOW_AND_HIGH = OpLists(bf16=("linear", "mm"), fp32=("softmax",))


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """Variables are as before after each test."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in (LAZY, *LISTS, "PT_HPU_FORCE_TANH_FOR_GELU"):
        os.environ.pop(name, None)
    monkeypatch.delitem(sys.modules, hpu.BRIDGE, raising=False)


@pytest.mark.parametrize(("lazy", "told", "value"), [(True, None, "1"), (False, None, "0"), (True, "2", "2")])
def test_the_mode_is_always_written_out(lazy, told, value):
    if told is not None:
        os.environ[LAZY] = told
    assert choose_environment(lazy, None) == {LAZY: value, "PT_HPU_FORCE_TANH_FOR_GELU": "0"}


def test_a_users_own_choice_of_gelu_stays():
    os.environ["PT_HPU_FORCE_TANH_FOR_GELU"] = "1"
    assert choose_environment(False, None)["PT_HPU_FORCE_TANH_FOR_GELU"] == "1"


def test_op_lists_reach_the_bridge_as_bare_lines():
    chosen = choose_environment(False, LOW_AND_HIGH)
    assert [Path(chosen[name]).read_bytes() for name in LISTS] == [b"linear\nmm", b"softmax"]


def test_the_environment_is_complete_before_the_bridge_is_there():
    complete_environment({LAZY: "1", LISTS[0]: "/list"})
    assert (os.environ[LAZY], os.environ[LISTS[0]]) == ("1", "/list")


def test_a_bridge_that_was_imported_too_early_is_refused(monkeypatch):
    chosen = choose_environment(True, LOW_AND_HIGH)
    complete_environment(chosen)
    monkeypatch.setitem(sys.modules, hpu.BRIDGE, ModuleType(hpu.BRIDGE))
    complete_environment(choose_environment(True, LOW_AND_HIGH))  # equal lists are one file
    with pytest.raises(DeviceError, match=rf"imported before {LAZY}=0 was set; import dino before torch"):
        complete_environment({LAZY: "0"})
    other = choose_environment(True, OpLists(bf16=("mm",), fp32=("softmax",)))
    with pytest.raises(DeviceError, match=f"imported before {LISTS[0]}="):
        complete_environment(other)


def test_fp16_and_a_missing_bridge_are_refused(monkeypatch):
    monkeypatch.setattr(hpu, "is_bridge_installed", lambda: True)
    with pytest.raises(DeviceError, match="--precision fp16 needs --device cuda"):
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

    monkeypatch.setattr(hpu, "is_bridge_installed", lambda: True)
    monkeypatch.setattr(hpu.importlib, "import_module", refuse)
    with pytest.raises(
        DeviceError, match=rf"the Habana bridge cannot be imported \({failure}\); `python -m dino.doctor`"
    ):
        HpuDevice("fp32")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("synStatus=26 [Generic failure] Device acquire failed.", "another process holds it"),
        (
            "FATAL ERROR :: MODULE:PT_DEVMEM Allocation failed for size::268435456 (256)MB",
            "memory is full; lower --batch",
        ),
    ],
)
def test_failures_of_the_card_are_explained(text, named):
    assert named in HpuDevice.explain(object.__new__(HpuDevice), RuntimeError(text))
    assert HpuDevice.explain(object.__new__(HpuDevice), RuntimeError("shapes differ")) is None
