"""What a replayed operator gets: numbers it allows, of the recorded form, the same for device and
reference."""

from __future__ import annotations

import torch

from dino.verify.operator_inputs import Inputs, find_function
from dino.verify.operator_list import DEVICE, Call, Spec

CPU = torch.device("cpu")


def draw(operator: str, *arguments, **keywords):
    inputs = Inputs(Call("name", operator, arguments, keywords, ()))
    return inputs.to_device(CPU), inputs.widen()


def test_an_operators_function_is_its_name_in_all_forms():
    names = (
        "aten.div.Tensor",
        "aten.div_.Scalar",
        "aten._foreach_div.List",
        "aten._foreach_div_.Tensor",
    )
    assert {find_function(name) for name in names} == {"div"}
    assert find_function("aten._to_copy.default") == "to_copy"


def test_tensors_have_the_recorded_form():
    specs = [
        Spec(torch.float32, (3, 4)),
        Spec(torch.bfloat16, (4, 3), (1, 4), 5),
        Spec(torch.float32, (8, 2), (0, 1)),
    ]
    ((first, second, third), _), _ = draw("aten.cat.default", *specs)
    assert first.shape == (3, 4) and first.is_contiguous()
    assert (second.dtype, second.shape, second.stride(), second.storage_offset()) == (
        torch.bfloat16,
        (4, 3),
        (1, 4),
        5,
    )
    assert third.stride() == (0, 1)
    assert torch.equal(third[0], third[7])


def test_the_reference_gets_the_same_numbers_in_float32():
    spec = Spec(torch.bfloat16, (50, 3))
    ((ours,), given), ((wide,), widened) = draw(
        "aten._to_copy.default", spec, dtype=torch.bfloat16, device=DEVICE
    )
    assert (ours.dtype, wide.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(ours.float(), wide)
    assert given == {"dtype": torch.bfloat16, "device": CPU}
    assert widened == {"dtype": torch.float32, "device": CPU}


def test_changing_the_devices_tensor_leaves_the_references():
    spec = Spec(torch.float32, (4,))
    inputs = Inputs(Call("name", "aten.zero_.default", (spec,), {}, ()))
    (ours,), _ = inputs.to_device(CPU)
    ours.zero_()
    (wide,), _ = inputs.widen()
    assert wide.abs().sum() > 0


def test_drawing_again_gives_the_same_and_two_tensors_differ():
    spec = Spec(torch.float32, (100,))
    ((one, other), _), _ = draw("aten.add.Tensor", spec, spec)
    ((again, _), _), _ = draw("aten.add.Tensor", spec, spec)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_roots_logarithms_and_divisors_are_positive():
    spec = Spec(torch.float32, (1000,))
    for operator in (
        "aten.log.default",
        "aten._foreach_sqrt.default",
        "aten.div_.Tensor",
        "aten.rsqrt.default",
    ):
        ((values,), _), _ = draw(operator, spec)
        assert 0.5 <= values.min() and values.max() <= 2


def test_products_get_all_bits_of_a_float32():
    ((values,), _), _ = draw("aten.mm.default", Spec(torch.float32, (1000,)))
    assert (values != values.bfloat16().float()).float().mean() > 0.9


def test_comparisons_and_roundings_get_ties():
    spec = Spec(torch.float32, (1000,))
    ((one, other), _), _ = draw("aten.eq.Tensor", spec, spec)
    assert 0.05 < (one == other).float().mean() < 0.5
    ((values,), _), _ = draw("aten.round_.default", spec)
    assert 0.3 < (values.frac() != 0).float().mean() < 0.7


def test_indices_are_below_the_smallest_size_and_masks_hold_both():
    table, index = Spec(torch.float32, (7, 30)), Spec(torch.int64, (200,))
    ((_, drawn), _), _ = draw("aten.embedding.default", table, index)
    assert (int(drawn.min()), int(drawn.max())) == (0, 6)
    ((mask,), _), _ = draw("aten.where.self", Spec(torch.bool, (1000,)))
    assert 0.4 < mask.float().mean() < 0.6
    ((levels,), _), _ = draw("aten._to_copy.default", Spec(torch.uint8, (1000,)))
    assert levels.min() < 10 and levels.max() > 245


def test_a_tensor_larger_than_the_pool_is_filled():
    ((values,), _), _ = draw("aten.neg.default", Spec(torch.float32, (1500, 1500)))
    assert values.shape == (1500, 1500)
    assert values[0].std() > 0.5 and values[-1].std() > 0.5


def test_lists_of_tensors_are_drawn_one_by_one():
    specs = [Spec(torch.float32, (2,)), Spec(torch.float32, (3,))]
    ((tensors, number), _), _ = draw("aten._foreach_add_.Scalar", specs, 1e-8)
    assert [tensor.shape for tensor in tensors] == [(2,), (3,)]
    assert number == 1e-8
