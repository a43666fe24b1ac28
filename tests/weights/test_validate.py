"""What a file holds is checked once: whatever is odd in it ends in one line, and before anything is
written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dino import inspect
from dino.cli.session import exit_code
from dino.errors import CheckpointError, DinoError, WeightsError
from dino.evaluation.linear.head import LinearHead
from dino.evaluation.linear.task import load_head
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.registry import build_backbone
from dino.weights.convert import select_layer
from dino.weights.formats.huggingface import to_hugging_face
from dino.weights.load import load_backbone
from dino.weights.read import read_weights
from dino.weights.validate import list_tensors, validate

Change = Callable[[dict[str, Tensor]], Any]


def load(folder: Path, change: Change) -> Any:
    torch.save(
        change(dict(build_backbone("vit_mini", img_size=64).state_dict())), folder / "odd.pth"
    )
    return load_backbone(
        BackboneConfig(), WeightsConfig(pretrained_weights=str(folder / "odd.pth"))
    )


def saying(**args: Any) -> Change:
    return lambda tensors: {
        "teacher": tensors,
        "args": {"arch": "vit_mini", "patch_size": 16, **args},
    }


def feeding(normalization: Any) -> Change:
    return lambda tensors: {"teacher": tensors, "normalisation": normalization}


SCALAR = torch.zeros(())
ODD: dict[str, tuple[Change, str]] = {
    "a number as a name": (
        lambda tensors: {1: torch.zeros(2, 2), **tensors},
        r"the name of a tensor must be a str \(got int\)",
    ),
    "one deeper": (
        lambda tensors: {"teacher": {1: torch.zeros(2, 2), **tensors}},
        r"the name of a tensor must be a str \(got int\)",
    ),
    "a number as a tensor": (
        lambda tensors: {"teacher": {**tensors, "norm.bias": 1}},
        r"norm.bias must be a tensor \(got int\)",
    ),
    "no grid": (
        lambda tensors: {**tensors, "pos_embed": SCALAR},
        r"pos_embed \(must be .*, got \(\)\)",
    ),
    "a flat grid": (
        lambda tensors: {**tensors, "pos_embed": tensors["pos_embed"][0]},
        r"pos_embed \(must be .*, got \(17, 96\)\)",
    ),
    "an empty grid": (
        lambda tensors: {**tensors, "pos_embed": torch.zeros(1, 0, 96)},
        r"pos_embed \(must be .*, got \(1, 0, 96\)\)",
    ),
    "flat patches": (
        lambda tensors: {**tensors, "patch_embed.proj.weight": torch.zeros(96, 768)},
        r"patch_embed\.proj\.weight \(must be .*, got \(96, 768\)\)",
    ),
    "a flat block": (
        lambda tensors: {**tensors, "blocks.0.mlp.fc1.weight": SCALAR},
        "backbone tensors do not fit",
    ),
    "parts that do not join": (
        lambda tensors: {
            **to_hugging_face(tensors),
            "encoder.layer.0.attention.attention.query.weight": SCALAR,
        },
        r"blocks\.0\.attn\.qkv\.weight \(missing\)",
    ),
    "a sparse tensor": (
        lambda tensors: {**tensors, "norm.bias": torch.ones(96).to_sparse()},
        "save it dense",
    ),
    "a tensor without numbers": (
        lambda tensors: {**tensors, "norm.bias": torch.ones(96, device="meta")},
        r"must be a dense tensor \(got meta\)",
    ),
    "a patch size in words": (
        saying(patch_size="abc"),
        r"patch_size in its args must be a number of 1 or more \(got str\)",
    ),
    "no channels": (saying(in_chans=0), "in_chans in its args"),
    "a size of two numbers": (
        saying(global_crops_size=[64, 64]),
        r"global_crops_size in its args must be .* \(got list\)",
    ),
    "a number as an architecture": (saying(arch=5), r"arch in its args must be a name \(got int\)"),
    "no std": (feeding({"mean": [0.5] * 3}), "its normalization must hold a mean and a std"),
    "a number as a mean": (feeding({"mean": 0.5, "std": 0.5}), "its normalization must hold"),
    "words as a mean": (
        feeding({"mean": ["a", "b", "c"], "std": [1, 1, 1]}),
        "its normalization must hold",
    ),
    "a std of nothing": (
        feeding({"mean": [0.5] * 3, "std": [0, 1, 1]}),
        "its normalization must hold",
    ),
    "a mean that is too long": (
        feeding({"mean": [0.5] * 3, "std": [1, 1]}),
        "its normalization must hold",
    ),
    "a normalization in words": (feeding("imagenet"), "its normalization must hold"),
}


@pytest.mark.parametrize("name", ODD)
@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_what_is_odd_in_a_file_is_one_line(tmp_path: Path, name: str) -> None:
    change, reason = ODD[name]
    with pytest.raises((CheckpointError, WeightsError), match=reason) as caught:
        load(tmp_path, change)
    assert str(caught.value).startswith(str(tmp_path / "odd.pth"))


def test_a_linear_layers_file_goes_through_the_same_door(tmp_path: Path) -> None:
    torch.save({1: torch.zeros(2)}, tmp_path / "layer.pth")
    with pytest.raises(DinoError, match="the name of a tensor"):
        load_head(LinearHead(4, 2), tmp_path / "layer.pth", {})


READERS: dict[str, Callable[[Path], Any]] = {
    "eval_linear": lambda path: load_head(LinearHead(4, 2), path, {}),
    "convert": lambda path: select_layer(read_weights(str(path)), path),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("held", [3, [torch.zeros(2)], "words", torch.zeros(2)])
def test_a_layers_state_dict_that_is_no_dictionary_is_one_line(
    tmp_path: Path, reader: str, held: Any
) -> None:
    torch.save({"state_dict": held}, tmp_path / "layer.pth")
    with pytest.raises(
        CheckpointError, match=r"its state_dict must be a dictionary \(got \w+\); save it as one"
    ) as caught:
        READERS[reader](tmp_path / "layer.pth")
    assert str(caught.value).startswith(str(tmp_path / "layer.pth"))
    assert "\n" not in str(caught.value)


def test_an_identity_that_is_no_dictionary_is_one_line(tmp_path: Path) -> None:
    torch.save({"state_dict": LinearHead(4, 2).state_dict(), "identity": 3}, tmp_path / "layer.pth")
    with pytest.raises(
        CheckpointError, match=r"layer\.pth: its identity must be a dictionary \(got int\)"
    ):
        load_head(LinearHead(4, 2), tmp_path / "layer.pth", {"seed": 0})


def test_tensors_are_read_from_the_top_or_the_state_dict() -> None:
    layer = {"module.linear.weight": torch.zeros(2, 4), "epoch": 3}
    for state in (layer, {"state_dict": layer, "other": torch.zeros(1)}):
        assert list_tensors(state, "FILE").keys() == {"linear.weight"}
    assert list_tensors({"state_dict": None}, "FILE") == {}


def test_options_that_say_nothing_leave_it_to_the_tensors(tmp_path: Path) -> None:
    assert load(tmp_path, saying(in_chans=None, patch_size=None)).in_chans == 3


def test_parameters_that_were_saved_themselves_are_tensors(tmp_path: Path) -> None:
    torch.save(
        dict(build_backbone("vit_mini", img_size=64).named_parameters()),
        tmp_path / "parameters.pth",
    )
    assert not any(
        tensor.requires_grad for tensor in read_weights(str(tmp_path / "parameters.pth")).values()
    )


def test_what_is_no_network_may_have_other_keys() -> None:
    state = {
        "teacher": {"w": torch.zeros(2)},
        "optimizer": {"state": {0: {"step": 1}}},
        "history": {1: 0.5},
    }
    assert validate(state, "FILE").keys() == state.keys()


def test_inspect_tells_odd_values_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    endless: list[Any] = [1]
    for _ in range(60):
        endless = [endless, endless]
    state = {
        "model": {"head.weight": torch.zeros(())},
        "epoch": torch.tensor(3),
        "args": {"betas": endless},
    }
    torch.save(state, tmp_path / "odd.pth")
    assert exit_code(lambda: inspect.main([str(tmp_path / "odd.pth"), "--json", "-"])) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["epoch"] == "tensor(3)"
