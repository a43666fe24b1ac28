"""What timm writes for Hugging Face is read: the features are timm's own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

import dino
from dino.cli.convert import convert_timm
from dino.cli.inspect import main as inspect
from dino.errors import DinoError
from dino.weights.read import read_weights

Command = Callable[..., tuple[int, str]]

MINI = {"img_size": 64, "embed_dim": 96, "depth": 3, "num_heads": 3, "mlp_ratio": 2.0}
VIT, RESNET = "vit_tiny_patch16_224", "timm:resnet10t"


def write(folder: Path, name: str, form: bool = True, **settings: Any) -> nn.Module:
    """Let timm write a network with lively weights and a classifier; gives it without."""
    torch.manual_seed(7)
    model = timm.create_model(name, num_classes=5, **settings).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    timm.models.save_for_hf(model, folder, model_args=settings, safe_serialization=form)
    model.reset_classifier(0)
    return model


def divide(folder: Path) -> None:
    """Write the weights again in two shards with their index."""
    whole = folder / "model.safetensors"
    places = {}
    for name, tensor in safetensors.torch.load_file(whole).items():
        places.setdefault(f"model-{len(places) % 2}.safetensors", {})[name] = tensor
    for file, tensors in places.items():
        safetensors.torch.save_file(tensors, folder / file)
    index = {name: file for file, tensors in places.items() for name in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    whole.unlink()


def change(folder: Path, **values: Any) -> None:
    """Change values of config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def assert_same(found: nn.Module, model: nn.Module, *shape: int) -> None:
    images = torch.randn(2, *shape)
    with torch.inference_mode():
        assert torch.allclose(found(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["safetensors", "torch", "shards"])
def test_a_vision_transformer_becomes_ours(tmp_path: Path, reload: Any, form: str) -> None:
    model = write(tmp_path, VIT, form != "torch", **MINI)
    if form == "shards":
        divide(tmp_path)
    state = read_weights(str(tmp_path))
    settings = {"arch": "vit_mini", "patch_size": 16, "in_chans": 3, "global_crops_size": 64}
    assert state["args"] == settings
    assert state["normalisation"] == {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert_same(reload(tmp_path), model, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "settings"), [("resnet10t", {"in_chans": 4}), ("test_convnext", {})]
)
def test_any_other_network_stays_timms(tmp_path: Path, name: str, settings: dict[str, int]) -> None:
    model = write(tmp_path, name, **settings)
    loaded = dino.load(tmp_path)
    assert read_weights(str(tmp_path))["args"]["arch"] == f"timm:{name}"
    assert_same(loaded, model, settings.get("in_chans", 3), 64, 64)


def test_commands_say_what_it_is_and_convert_it(
    tmp_path: Path, command: Command, reload: Any
) -> None:
    model = write(tmp_path / "theirs", VIT, **MINI)
    code, text = command(inspect, tmp_path / "theirs")
    assert code == 0 and "timm, a folder for Hugging Face" in text and "vit_mini" in text
    code, text = command(convert_timm, tmp_path / "theirs", tmp_path / "ours.pth")
    assert code == 0 and "42 of 42 tensors matched" in text
    assert_same(reload(tmp_path / "ours.pth"), model, 3, 64, 64)


def test_a_folder_of_before_timm_had_pretrained_cfg_is_read(tmp_path: Path) -> None:
    write(tmp_path, "resnet10t")
    config = json.loads((tmp_path / "config.json").read_text())
    flat = {"architecture": "resnet10t", **config["pretrained_cfg"]}
    (tmp_path / "config.json").write_text(json.dumps(flat))
    assert read_weights(str(tmp_path))["args"]["arch"] == RESNET


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"architecture": "resnet11t"}, "timm has no 'resnet11t': did you mean resnet14t?"),
        ({"architecture": "hf-hub:a/b"}, "timm has no 'hf-hub:a/b'"),
        ({"architecture": "resnet14t"}, "resnet14t.: 49 of 114 backbone tensors do not fit"),
        (
            {"model_args": {"checkpoint_path": "/x"}},
            "setting checkpoint_path = '/x' cannot be read",
        ),
        ({"model_args": {"in_chans": 10**9}}, "setting in_chans = 1000000000 cannot be read"),
        ({"model_args": {"in_chans": 4}}, r"conv1.0.weight \(must be \(24, 4, 3, 3\), got"),
        ({"model_args": {"depth": 3}}, "cannot be built or run .*unexpected keyword"),
        ({"model_args": {"global_pool": "max"}}, "computes other features than timm:resnet10t"),
        ({"model_args": [1]}, "model_args must be a dictionary"),
        ({"pretrained_cfg": 1}, "pretrained_cfg must be a dictionary"),
        ({"pretrained_cfg": {"input_size": [3, 1e9]}}, "input_size must be the channels, height"),
        ({"pretrained_cfg": {"mean": "x", "std": [1.0]}}, "must hold a mean and a std"),
    ],
    ids=str,
)
def test_a_config_that_does_not_fit_is_one_line(
    tmp_path: Path, values: dict[str, Any], told: str
) -> None:
    write(tmp_path, "resnet10t")
    change(tmp_path, **values)
    with pytest.raises(DinoError, match=told) as caught:
        read_weights(str(tmp_path))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)
