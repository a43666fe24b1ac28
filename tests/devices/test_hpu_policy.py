"""Which op lists the bridge follows is shown by what it computes, in number formats that tell the
lists apart."""

import contextlib
import json

import pytest
import torch

from dino.cli.options import parse
from dino.devices.hpu import policy
from dino.devices.hpu.policy import CALLS, VENDOR_BF16, VENDOR_FP32, check_policy, plan_probes
from dino.devices.op_lists import CastingOps, OpLists, read_op_lists
from dino.errors import DeviceError
from dino.training.config import TrainConfig

BF16, FP32 = torch.bfloat16, torch.float32


@pytest.fixture
def following():
    """An autocast on the CPU that follows these two lists as the bridge does."""
    with contextlib.ExitStack() as installed:

        def build(low, high):
            casting = CastingOps(
                "cpu", OpLists(bf16=tuple(low), fp32=tuple(n for n in high if n not in low))
            )
            installed.callback(casting.close)
            return casting.autocast

        yield build


def read(*words):
    lists = read_op_lists(parse(TrainConfig, list(words)).precision)
    return lists.bf16, lists.fp32


def live(names):
    """Those that are ops."""
    return [name for name in names if name not in {"truediv"} and hasattr(torch.ops.aten, name)]


def test_the_references_lists_are_proven_by_an_op_of_each_kind():
    assert list(plan_probes(*read())) == [
        ("rsub", FP32, BF16),  # in our first list only
        ("conv2d", FP32, FP32),  # in the vendor's only
        ("softmax", BF16, FP32),  # in our second list only
        ("div", BF16, BF16),  # in the vendor's only
    ]


def test_the_vendors_own_lists_need_no_proof():
    assert list(plan_probes(VENDOR_BF16, VENDOR_FP32)) == []


@pytest.mark.parametrize("words", [(), ("--hmp-opt-level", "O2")])
def test_lists_that_are_followed_pass(words, following):
    low, high = read(*words)
    assert check_policy(torch.device("cpu"), following(low, high), low, high) >= 2


@pytest.mark.parametrize("refused", ["both", "first", "second"])
def test_a_file_that_the_bridge_refused_is_one_line(refused, following):
    low, high = read()
    found = (
        live(VENDOR_BF16) if refused != "second" else low,
        live(VENDOR_FP32) if refused != "first" else high,
    )
    with pytest.raises(
        DeviceError, match="the bridge does not follow the op lists: .* ran in .* instead of "
    ) as caught:
        check_policy(torch.device("cpu"), following(*found), low, high)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("wanted", [BF16, FP32])
def test_every_call_shows_the_number_format_that_its_op_ran_in(wanted, following):
    lists, given = ((CALLS, ()), FP32) if wanted == BF16 else (((), CALLS), BF16)
    with following(*lists)():
        found = {name: call(torch.ones(4, 4, dtype=given)).dtype for name, call in CALLS.items()}
    assert found == dict.fromkeys(CALLS, wanted)


def test_the_vendors_lists_are_those_of_the_facts(shared_facts):
    facts = json.loads((shared_facts / "bridge_later_autocast.json").read_text())
    assert (policy.VENDOR_BF16, policy.VENDOR_FP32) == (
        frozenset(facts["lower"]),
        frozenset(facts["fp32"]),
    )
