"""Names of tensors lose what wrappers add to them; tensors fit before they are used."""

import pytest
import torch

from dino import stored
from dino.errors import CheckpointError


def test_prefixes_are_stripped_in_either_order():
    names = [
        "module.backbone.norm.bias",
        "backbone.norm.weight",
        "module.head.mlp.0.weight",
        "cls_token",
    ]
    weights = {name: torch.full((1,), float(place)) for place, name in enumerate(names)}
    stripped = stored.strip_prefixes(weights)
    assert {name: int(value) for name, value in stripped.items()} == {
        **{"norm.bias": 0, "norm.weight": 1, "head.mlp.0.weight": 2, "cls_token": 3}
    }


def test_a_prefix_within_a_name_is_part_of_it():
    names = ["patch_embed.backbone.conv.weight", "submodule.weight", "my_backbone.bias"]
    assert list(stored.strip_prefixes({name: torch.zeros(1) for name in names})) == names


def test_two_names_that_become_one_are_an_error():
    with pytest.raises(CheckpointError, match=r"holds norm\.bias twice"):
        stored.strip_prefixes({"backbone.norm.bias": torch.zeros(1), "norm.bias": torch.ones(1)})


def test_a_prefix_is_put_in_front_of_every_name():
    assert list(stored.add_prefix("module.", {"a": torch.zeros(1), "b.c": torch.zeros(1)})) == [
        "module.a",
        "module.b.c",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "_orig_mod.norm.bias",
        "module._orig_mod.backbone.norm.bias",
        "_orig_mod.module.norm.bias",
        "model.backbone.norm.bias",
        "_fsdp_wrapped_module.norm.bias",
        "module.backbone._fsdp_wrapped_module.norm.bias",
        "norm._checkpoint_wrapped_module.bias",
        "net.norm.bias",
    ],
)
def test_what_wrappers_of_frameworks_add_is_stripped(name):
    assert list(stored.strip_prefixes({name: torch.zeros(1)})) == ["norm.bias"]
    assert list(stored.strip_wrappers({name: torch.zeros(1)})) == [
        "backbone.norm.bias" if "backbone" in name else "norm.bias"
    ]


LIKE = torch.zeros(2, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_numbers_of_any_width_become_those_of_the_network(dtype):
    value = torch.full((2, 3), 1.5, dtype=dtype, requires_grad=True)
    checked = stored.check_tensor("w", value, LIKE, "FILE")
    assert checked.dtype == torch.float32 and not checked.requires_grad
    assert checked.tolist() == [[1.5] * 3] * 2


WRONG = {
    "a list": ([0.0], r"w must be a tensor \(got list\)"),
    "a shape": (torch.zeros(3, 2), r"w must be \(2, 3\) \(got \(3, 2\)\)"),
    "huge": (torch.zeros(1).expand(2**40, 2**10), r"w must be \(2, 3\) \(got \(1099511627776,"),
    "integers": (torch.zeros(2, 3, dtype=torch.int8), "must hold floating-point numbers"),
    "truth": (torch.zeros(2, 3) > 0, r"floating-point numbers \(got truth values\)"),
    "complex": (torch.zeros(2, 3) + 0j, r"floating-point numbers \(got complex numbers\)"),
    "NaN": (torch.full((2, 3), torch.nan), "w holds NaN or infinite numbers"),
    "one infinite": (torch.tensor([[0.0, 1, 2], [3, 4, -torch.inf]]), "w holds NaN or infinite"),
    "too large": (torch.full((2, 3), 1e39, dtype=torch.float64), "w holds NaN or infinite"),
    "meta": (torch.zeros(2, 3, device="meta"), r"dense tensor \(got meta\)"),
    "sparse": (torch.eye(2, 3).to_sparse(), r"dense tensor \(got torch\.sparse_coo\)"),
    "a subclass": (torch.zeros(2, 3).as_subclass(type("Mine", (torch.Tensor,), {})), r"got Mine"),
}


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_a_tensor_that_does_not_fit_is_named(name):
    value, reason = WRONG[name]
    with pytest.raises(CheckpointError, match=f"^FILE: .*{reason}"):
        stored.check_tensor("w", value, LIKE, "FILE")


@pytest.mark.filterwarnings("ignore:torch.quantize")
def test_a_quantized_tensor_is_not_dense():
    packed = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
    with pytest.raises(CheckpointError, match=r"a\.w must be a dense tensor \(got torch\.qint8\)"):
        stored.check_values({"a": {"w": packed}}, "FILE")


def test_sums_that_overflow_do_not_make_numbers_infinite():
    assert stored.is_finite(torch.full((4,), 1e308, dtype=torch.float64))
    assert stored.is_finite(torch.full((10,), 65504.0, dtype=torch.float16))
    assert not stored.is_finite(torch.tensor([1.0, torch.nan]).to(torch.float8_e5m2))
    assert stored.is_finite(torch.zeros(0)) and stored.is_finite(torch.ones(3, dtype=torch.int64))
