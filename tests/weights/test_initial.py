"""A new run starts from a file's backbone, and from its head and center if they fit."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from dino.errors import CheckpointError, WeightsError
from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.registry import build_backbone
from dino.weights.initial import load_initial_weights
from dino.weights.resample import resample_position


def build(seed: int = 0, **settings: Any) -> nn.Module:
    """A small vision transformer with weights of its own."""
    torch.manual_seed(seed)
    return build_backbone("vit_mini", **{"patch_size": 16, "img_size": 64, **settings})


def prefixed(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


def save(folder: Path, state: Any) -> Path:
    torch.save(state, folder / "weights.pth")
    return folder / "weights.pth"


def build_student(*, seed: int = 7, prototypes: int = 12, img_size: int = 64) -> MultiCrop:
    torch.manual_seed(seed)
    head = DINOHead(in_dim=96, out_dim=prototypes, hidden_dim=16, bottleneck_dim=8)
    return MultiCrop(build(seed, img_size=img_size), head)


def build_checkpoint(teacher: Mapping[str, Tensor], prototypes: int = 12) -> dict[str, Any]:
    return {
        "teacher": dict(teacher),
        "dino_loss": {"center": torch.arange(float(prototypes))[None]},
        "epoch": 4,
    }


def test_a_failed_load_leaves_the_students_weights_alone(tmp_path: Path) -> None:
    student = build_student()
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    state = prefixed("backbone.", build(8))
    del state["backbone.norm.bias"]
    with pytest.raises(WeightsError, match=r"norm\.bias \(missing\)"):
        load_initial_weights(student, str(save(tmp_path, {"teacher": state})))
    assert all(torch.equal(tensor, before[name]) for name, tensor in student.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_new_run_starts_from_backbone_head_and_center(prefix: str, tmp_path: Path) -> None:
    source, student = build_student(seed=1), build_student(seed=2)
    center = load_initial_weights(
        student, str(save(tmp_path, build_checkpoint(prefixed(prefix, source))))
    )
    assert center is not None
    assert torch.equal(center, torch.arange(12.0)[None])
    assert all(
        torch.equal(student.state_dict()[name], tensor)
        for name, tensor in source.state_dict().items()
    )


@pytest.mark.parametrize(
    ("loss", "named"),
    [
        (3, r"its dino_loss must be a dictionary \(got int\); save it as one"),
        (torch.zeros(2), r"its dino_loss must be a dictionary \(got Tensor\)"),
        ({"center": 0.5}, r"the center of its dino_loss must be \(1, 12\) \(got float\)"),
        (
            {"center": torch.zeros(1, 7)},
            r"the center of its dino_loss must be \(1, 12\) \(got \(1, 7\)\)",
        ),
    ],
)
def test_a_center_that_is_none_is_one_line(loss: Any, named: str, tmp_path: Path) -> None:
    path = save(
        tmp_path, {**build_checkpoint(build_student(seed=1).state_dict()), "dino_loss": loss}
    )
    with pytest.raises(CheckpointError, match=named) as caught:
        load_initial_weights(build_student(seed=2), str(path))
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("loss", [None, {}])
def test_a_head_without_a_center_starts_a_run_too(loss: Any, tmp_path: Path) -> None:
    source = build_student(seed=1).state_dict()
    path = save(tmp_path, {**build_checkpoint(source), "dino_loss": loss})
    assert load_initial_weights(build_student(seed=2), str(path)) is None


def test_a_head_of_other_prototypes_is_left_as_it_was(tmp_path: Path) -> None:
    source, student = build_student(seed=1), build_student(seed=2, prototypes=20)
    before = {name: tensor.clone() for name, tensor in student.head.state_dict().items()}
    assert (
        load_initial_weights(student, str(save(tmp_path, build_checkpoint(source.state_dict()))))
        is None
    )
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in student.head.state_dict().items()
    )
    assert torch.equal(student.backbone.cls_token, source.backbone.cls_token)


def test_weights_of_a_backbone_alone_start_a_run_too(tmp_path: Path) -> None:
    source, student = build(1), build_student(seed=2)
    assert load_initial_weights(student, str(save(tmp_path, source.state_dict()))) is None
    assert torch.equal(student.backbone.norm.weight, source.norm.weight)
    assert torch.equal(student.backbone.pos_embed, source.pos_embed)


def test_the_position_embedding_is_resampled_to_the_new_size(tmp_path: Path) -> None:
    source, student = build(1, img_size=96), build_student(seed=2, img_size=64)
    load_initial_weights(student, str(save(tmp_path, source.state_dict())))
    assert torch.equal(student.backbone.pos_embed, resample_position(source.pos_embed, 17))
    assert torch.equal(student.backbone.pos_embed[:, 0], source.pos_embed[:, 0])


def test_a_new_run_of_other_channels_and_patches_adapts_the_first_layer_where_settings_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(save(tmp_path, build(1).state_dict()))
    head = DINOHead(in_dim=96, out_dim=12, hidden_dim=16, bottleneck_dim=8)
    student = MultiCrop(build(2, in_chans=1, patch_size=8), head)
    with pytest.raises(WeightsError, match="give `in_chans` 3, or `in_chans` 1 to adapt it"):
        load_initial_weights(student, path)
    with caplog.at_level(logging.INFO):
        load_initial_weights(student, path, in_chans=1, patch_size=8)
    assert "first layer from 3 to 1 channels, summed" in caplog.text
    assert torch.equal(
        student.backbone.blocks[0].attn.qkv.weight, build(1).blocks[0].attn.qkv.weight
    )


def test_a_new_run_starts_from_other_projects_files(tmp_path: Path) -> None:
    source, student = build(1), build_student(seed=2)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(source.state_dict(), path)
    load_initial_weights(student, str(path))
    assert torch.equal(student.backbone.norm.weight, source.norm.weight)
