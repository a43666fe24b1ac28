"""Names and layouts are translated to the other side and back to the bit."""

import pytest
import torch

from dino.errors import CheckpointError
from dino.models.registry import build_backbone
from dino.weights.formats.huggingface import rename, to_hugging_face
from dino.weights.formats.paddle import transpose_linear
from dino.weights.read import rename_to_ours


@pytest.mark.parametrize("arch", ["vit_mini", "vit_tiny"])
def test_hugging_face_names_and_back(arch: str) -> None:
    ours = build_backbone(arch, img_size=32).state_dict()
    theirs = to_hugging_face(ours)
    assert rename(ours) is None
    blocks = (
        sum(name.startswith("blocks.") for name in ours) // 12
    )  # as many of weights and biases in one block
    assert len(theirs) == len(ours) + 4 * blocks
    back = rename({**theirs, "pooler.dense.bias": torch.zeros(3)})
    assert back is not None and back.pop("pooler.dense.bias").shape == (3,)
    assert back.keys() == ours.keys() and all(torch.equal(back[name], ours[name]) for name in ours)


def test_query_key_and_value_are_the_three_thirds() -> None:
    ours = build_backbone("vit_mini", img_size=32).state_dict()
    theirs = to_hugging_face(ours)
    for third, name in enumerate(("query", "key", "value")):
        expected = ours["blocks.1.attn.qkv.weight"][96 * third : 96 * (third + 1)]
        assert torch.equal(theirs[f"encoder.layer.1.attention.attention.{name}.weight"], expected)


def test_a_third_that_is_missing_is_not_made_up() -> None:
    theirs = to_hugging_face(build_backbone("vit_mini", img_size=32).state_dict())
    del theirs["encoder.layer.0.attention.attention.key.weight"]
    found = rename(theirs)
    assert found is not None and "blocks.0.attn.qkv.weight" not in found
    assert "encoder.layer.0.attention.attention.query.weight" in found


def test_linear_weights_are_transposed_square_ones_too_and_nothing_else() -> None:
    ours = build_backbone("vit_mini", img_size=32).state_dict()
    theirs = transpose_linear(ours)
    for name, tensor in ours.items():
        assert torch.equal(theirs[name], tensor.T if tensor.ndim == 2 else tensor)
    assert not torch.equal(theirs["blocks.0.attn.proj.weight"], ours["blocks.0.attn.proj.weight"])
    back = transpose_linear(theirs)
    assert all(torch.equal(back[name], ours[name]) for name in ours)


@pytest.mark.parametrize("second", ["norm.bias", "vit.layernorm.bias"])
def test_a_tensor_under_two_names_is_an_error(second: str) -> None:
    theirs = to_hugging_face(build_backbone("vit_mini", img_size=32).state_dict())
    with pytest.raises(CheckpointError, match=r"norm\.bias twice"):
        rename_to_ours({**theirs, second: torch.zeros(96)})


def test_our_names_stay() -> None:
    ours = build_backbone("vit_mini", img_size=32).state_dict()
    assert (
        rename_to_ours({f"module.backbone.{name}": tensor for name, tensor in ours.items()}).keys()
        == ours.keys()
    )
