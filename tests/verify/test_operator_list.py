"""The recorded operators are those of today's step, and every line of the file can be read."""

from __future__ import annotations

import importlib
import json

import pytest
import torch

from dino.verify import operator_list
from dino.verify.operator_list import (
    BATCHES,
    FORMATS,
    Spec,
    read_calls,
    read_file,
    read_spec,
    write_spec,
)
from tests import hpu_simulator
from tests.test_layers import ROOT


@pytest.fixture(scope="module")
def tool():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "tools"))  # its processes import it again
        yield importlib.import_module("record_operators")


def without_numbers(call: operator_list.Call) -> str:
    """Its name without its number in the file, and its tensors; numbers among its arguments count
    by their kind."""
    kinds = [type(value).__name__ for value in call.arguments]
    return f"{call.operator} {kinds} {list(call.specs())} {call.results}"


# Short: what changes the step or the op lists shows in these two; the tool writes all three at
# once.
@pytest.mark.parametrize(
    "formats", [("fp32", "ops"), pytest.param(("bf16",), marks=pytest.mark.long)], ids="-".join
)
def test_a_step_of_today_calls_the_operators_of_the_list(formats, tool):
    if hpu_simulator.why_unavailable():
        pytest.skip(f"no simulated hpu: {hpu_simulator.why_unavailable()}")
    recorded_by = read_file()["recorded"]["torch"]
    if tool.find_torch() != recorded_by:
        pytest.skip(
            f"torch {recorded_by} wrote the list, and {tool.find_torch()} may compose its operators of others"
        )
    for number_format, steps in tool.record_all(formats, (1,)).items():
        now = operator_list.read_calls(
            number_format, 1, json.loads(tool.write({number_format: steps}))
        )
        now, stored = (
            {without_numbers(call) for call in calls}
            for calls in (now, read_calls(number_format, 1))
        )
        assert now == stored, (
            f"{number_format}: the step has changed; run python tools/record_operators.py"
        )


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("number_format", FORMATS)
def test_every_list_can_be_read(number_format, batch):
    calls = read_calls(number_format, batch)
    names = [call.name for call in calls]
    assert len(names) == len(set(names)) > 500
    assert all(call.operator.startswith("aten.") for call in calls)
    types = {spec.dtype for call in calls for spec in call.specs() if spec.dtype.is_floating_point}
    assert types == (
        {torch.float32} if number_format == "fp32" else {torch.float32, torch.bfloat16}
    )


def test_the_step_is_whole():
    functions = {call.operator.split(".")[1] for call in read_calls("fp32", 64)}
    forward = {"convolution", "addmm", "native_layer_norm", "gelu", "_log_softmax"}
    backward = {
        "convolution_backward",
        "native_layer_norm_backward",
        "gelu_backward",
        "_softmax_backward_data",
    }
    update = {
        "linalg_vector_norm",
        "_foreach_mul_",
        "_foreach_sqrt",
        "_foreach_div_",
        "_foreach_lerp_",
    }
    augmentation = {"flip", "replication_pad2d", "copysign", "floor_"}
    assert forward | backward | update | augmentation <= functions


def test_a_batch_of_64_has_64_images():
    sizes = {spec.size for call in read_calls("fp32", 64) for spec in call.specs()}
    assert {(128, 3, 224, 224), (512, 3, 96, 96), (128, 65536), (65536, 256)} <= sizes


def test_an_operator_of_two_lists_has_one_name():
    first, second = (
        {call.name: call for call in read_calls(*which)} for which in (("fp32", 1), ("bf16", 64))
    )
    shared = first.keys() & second.keys()
    assert len(shared) > 100
    assert all(first[name] == second[name] for name in shared)


def test_a_list_that_was_not_recorded_is_refused():
    with pytest.raises(
        ValueError, match="no step of fp16 with 1 images was recorded; formats are fp32, bf16, ops"
    ):
        read_calls("fp16", 1)
    with pytest.raises(ValueError, match="batches 1, 64"):
        read_calls("fp32", 2)


def test_the_file_is_small():
    path = ROOT / "dino" / "verify" / operator_list.FILE
    assert path.stat().st_size < 250_000


@pytest.mark.parametrize(
    ("text", "spec", "extent"),
    [
        ("f32[]", Spec(torch.float32, ()), 1),
        ("bf16[2,3]", Spec(torch.bfloat16, (2, 3)), 6),
        ("u8[4]@cpu", Spec(torch.uint8, (4,), on_host=True), 4),
        ("f32[2,3:1,2+5]", Spec(torch.float32, (2, 3), (1, 2), 5), 11),
        ("f32[:+1]", Spec(torch.float32, (), (), 1), 2),
        ("bool[8,3:0,1+0]", Spec(torch.bool, (8, 3), (0, 1)), 3),
        ("i64[0,3]", Spec(torch.int64, (0, 3)), 0),
    ],
)
def test_a_tensor_is_written_and_read(text, spec, extent):
    assert read_spec(text) == spec
    assert write_spec(spec) == text
    assert spec.extent == extent


def test_what_describes_no_tensor_is_refused():
    with pytest.raises(ValueError, match=r"\(got 'f32\(2\)'\)"):
        read_spec("f32(2)")


def test_the_tool_describes_a_tensor_by_its_place_in_memory(tool):
    whole = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert tool.describe(whole) == "bf16[4,6]@cpu"
    assert tool.describe(whole[1:, 2:4]) == "bf16[3,2:6,1+8]@cpu"
    assert tool.describe(whole[:, :1].t()) == "bf16[1,4:1,6+0]@cpu"
    assert tool.describe(
        [1, None, 0.30000001192, torch.float32, torch.contiguous_format, torch.device("meta")]
    ) == [
        *(1, None, 0.3, "f32", "contiguous", "device"),
    ]


def test_operators_that_differ_in_floating_point_numbers_or_offsets_only_are_the_same(tool):
    one, other = (
        ["aten.ge.Scalar", ["f32[2]", 0.1], {}, "bool"],
        ["aten.ge.Scalar", ["f32[2]", 3e-05], {}, "bool"],
    )
    assert tool.identify(one) == tool.identify(other)
    assert tool.identify(one) != tool.identify(["aten.ge.Scalar", ["f32[3]", 0.1], {}, "bool"])
    assert tool.identify(["aten.sum.dim", [1]]) != tool.identify(["aten.sum.dim", [2]])
    rows = [
        ["aten.view.default", [f"f32[2:1+{offset}]", [-1, 1]], {}, "f32"] for offset in (0, 2, 46)
    ]
    assert tool.identify(rows[1]) == tool.identify(rows[2]) != tool.identify(rows[0])
