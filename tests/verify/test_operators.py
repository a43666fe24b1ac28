"""Operator replay says what is wrong with an operator: on the CPU, with faults put into single
operators."""

from __future__ import annotations

import itertools
import time

import pytest
import torch

from dino.devices.cpu import CpuDevice
from dino.verify import operators
from dino.verify.operator_list import FORMATS, Call, Spec, read_calls

SMALL = 1 << 16  # numbers that the operators of the short test take at most

GELU = Call(
    "aten::gelu", "aten.gelu.default", (Spec(torch.float32, (40, 50)),), {}, (torch.float32,)
)
MUL_ = Call(
    "aten::mul_", "aten.mul_.Scalar", (Spec(torch.float32, (40,)), 2.0), {}, (torch.float32,)
)
MM = Call(
    "aten::mm",
    "aten.mm.default",
    (Spec(torch.float32, (64, 384)), Spec(torch.float32, (384, 64))),
    {},
    (torch.float32,),
)
ROUND = Call(
    "aten::round", "aten.round.default", (Spec(torch.float32, (40,)),), {}, (torch.float32,)
)
VIEW = Call("aten::t", "aten.t.default", (Spec(torch.float32, (4, 5)),), {}, (torch.float32,))
RAND = Call("aten::rand", "aten.rand.default", ([40, 50],), {"device": "device"}, (torch.float32,))


def names_of_large(number_format: str) -> set[str]:
    return {
        call.name
        for call in read_calls(number_format, 1)
        if sum(spec.extent for spec in call.specs()) > SMALL
    }


def replay(number_format: str, skip: set[str]) -> tuple[list[operators.Outcome], list[str]]:
    reported: list[str] = []
    device = CpuDevice("fp32")
    outcomes = operators.replay(
        device, number_format, batch=1, seconds=600, report=reported.append, skip=skip
    )
    return list(outcomes), reported


def test_the_small_operators_of_all_formats_pass_on_the_cpu():
    done: set[str] = set()
    for number_format in FORMATS:
        outcomes, reported = replay(number_format, done | names_of_large(number_format))
        assert [outcome for outcome in outcomes if outcome.status != "pass"] == []
        assert all(outcome.microseconds > 0 for outcome in outcomes)
        assert [outcome.operator for outcome in outcomes] == reported
        done |= set(reported)
    assert len(done) > 400


@pytest.mark.long
def test_all_operators_of_all_formats_pass_on_the_cpu():
    done: set[str] = set()
    for number_format in FORMATS:
        outcomes, reported = replay(number_format, done)
        assert [outcome for outcome in outcomes if outcome.status != "pass"] == []
        done |= set(reported)
    assert done == {
        name
        for number_format in FORMATS
        for name in operators.list_operators(number_format, batch=1)
    }


class Faulty:
    """An operator with a fault from its second call on: the first one is the reference's."""

    def __init__(self, call: Call, fault):
        self.overload, self.fault, self.calls = call.find_overload(), fault, 0
        self._schema = self.overload._schema

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == 1:
            return self.overload(*args, **kwargs)
        return self.fault(self.overload, *args, **kwargs)


def run_faulty(call: Call, fault, monkeypatch, device=None) -> operators.Outcome:
    faulty = Faulty(call, fault)
    monkeypatch.setattr(Call, "find_overload", lambda _: faulty)
    return operators.run_call(device or CpuDevice("fp32"), call)


def raising(error: Exception):
    def fault(*_, **__):
        raise error

    return fault


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (
            RuntimeError("aten::gelu is not yet supported on HPU."),
            "missing",
            "RuntimeError: aten::gelu is not yet",
        ),
        (
            NotImplementedError(
                "Could not run 'aten::gelu' with arguments from the 'HPU' backend.\nMore"
            ),
            "missing",
            "",
        ),
        (RuntimeError("synStatus 26"), "failing", "RuntimeError: synStatus 26"),
        (TypeError("a type"), "failing", "TypeError: a type"),
        (
            RuntimeError("Allocation failed for size::268435456 (256)MB"),
            "failing",
            "out of memory: RuntimeError",
        ),
        (torch.OutOfMemoryError("no room"), "failing", "out of memory: OutOfMemoryError: no room"),
    ],
)
def test_an_operator_that_raises_is_missing_or_failing(error, status, detail, monkeypatch):
    outcome = run_faulty(GELU, raising(error), monkeypatch)
    assert (outcome.operator, outcome.status, outcome.microseconds) == ("aten::gelu", status, None)
    assert outcome.detail.startswith(detail)
    assert "\n" not in outcome.detail


def test_an_operator_that_only_the_host_has_fell_back(monkeypatch):
    error = RuntimeError("aten::gelu is not yet supported on HPU.")
    monkeypatch.setenv("PT_HPU_PLACE_ON_CPU", "none")
    outcome = run_faulty(GELU, raising(error), monkeypatch)
    assert outcome.status == "fell back"
    assert "PT_HPU_PLACE_ON_CPU" in outcome.detail


def test_an_operator_that_the_host_ran_fell_back(monkeypatch):
    fallbacks: list[str] = []

    def fall_back(overload, *args):
        fallbacks.append("aten::gelu")
        return overload(*args)

    device = CpuDevice("fp32")
    monkeypatch.setattr(
        device, "read_counters", lambda: {"hpu/cpu_fallbacks": float(len(fallbacks))}
    )
    assert operators.run_call(device, ROUND).status == "pass"
    outcome = run_faulty(GELU, fall_back, monkeypatch, device)
    assert (outcome.status, outcome.detail) == (
        "fell back",
        "the host ran it instead of the device",
    )
    assert outcome.microseconds is not None


@pytest.mark.parametrize(
    ("call", "fault", "detail"),
    [
        (GELU, lambda op, x: op(x) * 1.125, "result 0 is "),
        (GELU, lambda op, x: op(x, approximate="tanh"), "result 0 is "),
        (GELU, lambda op, x: op(x).bfloat16(), "returns bfloat16 instead of float32"),
        (GELU, lambda op, x: op(x)[:5], "result 0 has sizes [5, 50] instead of [40, 50]"),
        (GELU, lambda op, x: op(x) / 0, "result 0 has "),
        (MM, lambda op, a, b: op(a.bfloat16(), b.bfloat16()).float(), "result 0 is "),
        (MUL_, lambda op, x, two: x.mul_(two + 1e-4), "result 0 is "),
        (MUL_, lambda op, x, two: x, "result 0 is "),
        (ROUND, lambda op, x: (x + 0.5).floor(), "result 0 differs in "),
        (VIEW, lambda op, x: x.t().flip(0), "result 0 differs in "),
        (RAND, lambda op, *a, **k: op(*a, **k) * 1.2, "result 0 has numbers"),
        (RAND, lambda op, *a, **k: op(*a, **k) * 0.7, "result 0 has a mean"),
        (RAND, lambda op, *a, **k: op(*a, **k) * 0 + 0.5, "result 0 has a standard deviation"),
    ],
)
def test_wrong_numbers_are_inaccurate(call, fault, detail, monkeypatch):
    outcome = run_faulty(call, fault, monkeypatch)
    assert outcome.status == "inaccurate", outcome
    assert outcome.detail.startswith(detail)
    assert outcome.microseconds > 0


@pytest.mark.parametrize("call", [GELU, MUL_, MM, ROUND, VIEW, RAND], ids=lambda call: call.name)
def test_right_numbers_pass(call):
    outcome = operators.run_call(CpuDevice("fp32"), call)
    assert (outcome.status, outcome.detail) == ("pass", "")


def test_a_sum_in_another_order_is_right(monkeypatch):
    call = Call(
        "aten::sum", "aten.sum.default", (Spec(torch.float32, (100_000,)),), {}, (torch.float32,)
    )
    outcome = run_faulty(call, lambda op, x: x.cumsum(0)[-1], monkeypatch)
    assert outcome.status == "pass"


def test_rounding_to_bfloat16_within_an_operator_is_right_and_an_eighth_more_is_not(monkeypatch):
    spec = Spec(torch.bfloat16, (200, 384))
    call = Call("aten::_softmax", "aten._softmax.default", (spec, -1, False), {}, (torch.bfloat16,))

    def rounded(op, x, *_):
        exponents = (x - x.amax(-1, keepdim=True)).exp()
        return exponents / exponents.sum(-1, keepdim=True)

    assert run_faulty(call, rounded, monkeypatch).status == "pass"
    monkeypatch.undo()
    assert run_faulty(call, lambda op, *a: op(*a) * 1.125, monkeypatch).status == "inaccurate"


def test_an_operator_that_torch_lacks_is_not_run():
    call = GELU._replace(operator="aten.gelu_of_tomorrow.default")
    outcome = operators.run_call(CpuDevice("fp32"), call)
    assert (outcome.status, outcome.microseconds) == ("not run", None)
    assert outcome.detail.endswith("has no aten.gelu_of_tomorrow.default")


def test_an_operator_that_the_cpu_lacks_has_no_reference(monkeypatch):
    faulty = Faulty(GELU, lambda op, x: op(x))
    faulty.overload = raising(NotImplementedError("no kernel"))
    monkeypatch.setattr(Call, "find_overload", lambda _: faulty)
    outcome = operators.run_call(CpuDevice("fp32"), GELU)
    assert outcome.status == "not run"
    assert (
        outcome.detail
        == "no reference, because it fails on the CPU: NotImplementedError: no kernel"
    )


def test_inputs_that_are_too_large_are_not_drawn(monkeypatch):
    monkeypatch.setattr(operators, "LARGEST", 1000)
    outcome = operators.run_call(CpuDevice("fp32"), GELU)
    assert outcome.status == "not run"


def test_after_its_time_nothing_is_begun():
    reported: list[str] = []
    every = operators.replay(CpuDevice("fp32"), "fp32", batch=1, seconds=0, report=reported.append)
    outcomes = list(every)
    assert reported == []
    assert {outcome.status for outcome in outcomes} == {"not run"}
    assert [outcome.operator for outcome in outcomes] == operators.list_operators("fp32", batch=1)


def test_an_outcome_comes_before_the_next_operator_begins():
    reported: list[str] = []
    arguments = {"batch": 1, "seconds": 600, "report": reported.append}
    each = operators.replay(CpuDevice("fp32"), "fp32", **arguments)
    first = next(each)
    assert reported == [first.operator]
    rest = operators.replay(CpuDevice("fp32"), "fp32", **arguments, skip=reported)
    assert next(rest).operator == operators.list_operators("fp32", batch=1)[1]


def test_a_launch_is_not_waited_for():
    device, waits, launches = CpuDevice("fp32"), [], []
    device.synchronize = lambda: waits.append(len(launches))
    operators.measure(device, lambda: launches.append(time.perf_counter()))
    between = {after - before for before, after in itertools.pairwise(waits)}
    assert between == {0, 1, operators.LAUNCHES}
