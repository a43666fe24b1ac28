"""Whose a file is, is told for every kind of file; and what is in it."""

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dino.errors import WeightsError
from dino.models.head import DINOHead
from dino.models.registry import build_backbone
from dino.weights.describe import describe_file
from dino.weights.formats.huggingface import to_hugging_face
from dino.weights.read import read_weights, select_network

BACKBONE = dict(build_backbone("vit_mini", img_size=64).state_dict())
HEAD = dict(DINOHead(in_dim=96, out_dim=12, hidden_dim=16, bottleneck_dim=8).state_dict())
NAMED = {
    **{f"backbone.{n}": t for n, t in BACKBONE.items()},
    **{f"head.{n}": t for n, t in HEAD.items()},
}
ARGS = {"arch": "vit_mini", "patch_size": 16, "lr": 0.0005, "local_crops_scale": (0.05, 0.4)}
LAYER = {"module.linear.weight": torch.zeros(7, 96), "module.linear.bias": torch.zeros(7)}


def build_ipu() -> dict[str, Tensor]:
    """One dictionary of four networks; the last layer is cut in two."""
    head = {name: tensor for name, tensor in HEAD.items() if "last_layer" not in name}
    halves = {f"last_layer{half}.weight_v": torch.zeros(6, 8) for half in (1, 2)}
    return {
        f"{network}{part}.{name}": tensor
        for network in ("student", "teacher")
        for part, tensors in (("", BACKBONE), ("_head", {**head, **halves}))
        for name, tensor in tensors.items()
    }


FILES: dict[str, tuple[Any, str]] = {
    "ours": (
        {"student": NAMED, "teacher": NAMED, "epoch": 4, "args": ARGS},
        "checkpoint of this project",
    ),
    "our backbone": ({"teacher": NAMED, "epoch": 4, "args": ARGS}, "backbone of this project"),
    "original": (
        {"student": NAMED, "teacher": NAMED, "epoch": 4, "args": argparse.Namespace(**ARGS)},
        "checkpoint of the original",
    ),
    "ipu": (
        {"model": build_ipu(), "center": torch.zeros(1, 12), "epoch": 4},
        "checkpoint of the IPU port",
    ),
    "mae": ({"model": {**BACKBONE, "mask_token": torch.zeros(1)}}, "masked autoencoder (MAE)"),
    "dinov2": (
        {**BACKBONE, "mask_token": torch.zeros(1, 96), "blocks.0.ls1.gamma": torch.zeros(96)},
        "DINOv2, a vision transformer with layer scale, which this project does not compute",
    ),
    "registers": ({**BACKBONE, "register_tokens": torch.zeros(1, 4, 96)}, "DINOv2, a vision"),
    "swiglu": ({**BACKBONE, "blocks.0.mlp.w12.weight": torch.zeros(8, 96)}, "DINOv2, a vision"),
    "dinov3": ({**BACKBONE, "storage_tokens": torch.zeros(1, 4, 96)}, "DINOv3, a vision"),
    "lightning": (
        {
            "state_dict": {f"student_backbone.{n}": t for n, t in BACKBONE.items()}
            | {f"student_head.{n}": t for n, t in HEAD.items()}
        },
        "networks of another project in one dictionary",
    ),
    "hugging face": (to_hugging_face(BACKBONE), "Hugging Face, a ViT of the transformers library"),
    "timm": (
        {**BACKBONE, "head.weight": torch.zeros(5, 96)},
        "timm, a vision transformer with its classifier",
    ),
    "plain": (BACKBONE, "plain vision transformer: the original's names, which are timm's too"),
    "linear": ({"state_dict": LAYER, "epoch": 4}, "linear layer"),
    "resnet": (
        {"conv1.weight": torch.zeros(2, 3, 7, 7), "fc.weight": torch.zeros(9, 2)},
        "plain tensors of another",
    ),
    "foreign": ({"teacher": {"conv1.weight": torch.zeros(2)}}, "checkpoint of another network"),
    "empty": ({"epoch": 4}, "no weights"),
}


def describe(folder: Path, state: Any) -> dict[str, Any]:
    path = folder / "file.pth"
    torch.save(state, path)
    return describe_file(str(path), read_weights(str(path)))


@pytest.mark.parametrize("name", FILES)
def test_every_kind_is_recognized(name: str, tmp_path: Path) -> None:
    state, kind = FILES[name]
    assert describe(tmp_path, state)["kind"].startswith(kind)


@pytest.mark.parametrize("name", ["ours", "original", "ipu"])
def test_networks_head_center_epoch_and_flags_are_told(name: str, tmp_path: Path) -> None:
    state = {
        **FILES[name][0],
        **({} if name == "ipu" else {"dino_loss": {"center": torch.zeros(1, 12)}}),
    }
    found = describe(tmp_path, state)
    assert (found["centre"], found["epoch"]) == (12, 4)
    assert found["networks"].keys() == {"student", "teacher"}
    for network in found["networks"].values():
        assert {
            part: network[part]
            for part in ("tensors", "prototypes", "arch", "patch_size", "image_size")
        } == {
            **{
                "tensors": 42,
                "prototypes": 12,
                "arch": "vit_mini",
                "patch_size": 16,
                "image_size": 64,
            },
        }
        assert network["numbers"] == sum(tensor.numel() for tensor in BACKBONE.values())
    assert found["flags"] == ({} if name == "ipu" else ARGS)


def test_classes_and_what_lies_beside_are_counted(tmp_path: Path) -> None:
    assert describe(tmp_path, FILES["linear"][0])["networks"]["state_dict"] == {
        **{"formats": ["float32"], "beside": {"linear": 2}, "classes": 7},
    }
    mae = describe(tmp_path, FILES["mae"][0])["networks"]["model"]
    assert mae["beside"] == {"mask_token": 1} and mae["tensors"] == 42
    assert describe(tmp_path, FILES["timm"][0])["networks"]["weights"]["classes"] == 5


def test_a_width_that_no_architecture_has_is_told(shared_data: Path) -> None:
    word = str(shared_data / "passl" / "sample_dino_tiny_linearprobe.pdparams")
    found = describe_file(word, read_weights(word))
    assert found["kind"] == "PASSL (Paddle)"
    network = found["networks"]["weights"]
    assert {part: network[part] for part in ("width", "depth", "tensors", "classes")} == {
        **{"width": 64, "depth": 2, "tensors": 30, "classes": 10},
    }


def test_odd_values_are_told_as_text_and_do_not_hurt(tmp_path: Path) -> None:
    state = {
        "teacher": NAMED,
        "args": {"a": torch.zeros(1), "b": None},
        "dino_loss": 3,
        7: "seven",
        "model": 5,
    }
    found = describe(tmp_path, state)
    assert found["flags"] == {"a": "tensor([0.])", "b": None} and "centre" not in found


def test_what_the_ipu_port_keeps_besides_is_left_over_and_other_files_are_not_cut() -> None:
    state = {"model": {**build_ipu(), "stray": torch.zeros(1)}}
    found = select_network(state, "teacher", "file")
    assert {name.split(".")[0] for name in found.keys() - BACKBONE.keys()} == {"head", "stray"}
    with pytest.raises(WeightsError, match="has no network 'ema'"):
        select_network(state, "ema", "file")
    mixed = {"conv.weight": torch.zeros(1), "teacher.weight": torch.zeros(1)}
    assert select_network({"state_dict": mixed}, "teacher", "file") == mixed


def test_a_grid_that_is_no_square_has_no_size(tmp_path: Path) -> None:
    found = describe(tmp_path, {**BACKBONE, "pos_embed": torch.zeros(1, 25, 96)})["networks"][
        "weights"
    ]
    assert found["patch_size"] == 16 and "image_size" not in found
