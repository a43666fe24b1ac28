"""timm loads what was written for it and computes the same features; and its networks become
ours."""

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm as library
import torch

from dino.cli.convert import convert_timm
from dino.models.registry import build_backbone
from tests.weights.conftest import equal_tensors

Command = Callable[..., tuple[int, str]]


def create(text: str) -> torch.nn.Module:
    """The model that the line a user can copy means."""
    line = next(line for line in text.splitlines() if line.startswith("timm.create_model("))
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    settings = {word.arg: ast.literal_eval(word.value) for word in call.keywords if word.arg}
    return library.create_model(ast.literal_eval(call.args[0]), **settings).eval()


def save(folder: Path, module: torch.nn.Module) -> Path:
    torch.save(module.state_dict(), folder / "ours.pth")
    return folder / "ours.pth"


@pytest.mark.parametrize(
    ("arch", "settings", "size"),
    [
        ("vit_mini", {}, 64),
        ("vit_mini", {"patch_size": 8, "in_chans": 4, "img_size": 40}, 40),
        ("vit_tiny", {}, 64),
        ("vit_tiny", {"img_size": 224}, 224),
        ("resnet18", {"in_chans": 1}, 64),
    ],
)
def test_timm_gives_the_same_features(
    tmp_path: Path, command: Command, lively: Any, arch: str, settings: dict[str, Any], size: int
) -> None:
    module = (
        lively(arch, **settings)
        if arch.startswith("vit")
        else build_backbone(arch, **settings).eval()
    )
    channels = settings.get("in_chans", 3)
    words = ("--arch", arch) if arch.startswith("vit") else ("--arch", arch, "--in_chans", channels)
    code, text = command(
        convert_timm, save(tmp_path, module), tmp_path / "theirs.safetensors", *words
    )
    assert code == 0, text
    count = len(module.state_dict())
    assert text.splitlines()[-1].endswith(f"{count} of {count} tensors matched")
    images = torch.randn(2, channels, size, size)
    with torch.inference_mode():
        assert torch.allclose(create(text)(images), module(images), atol=1e-5)


def test_another_size_is_baked_in(tmp_path: Path, command: Command, lively: Any) -> None:
    module = lively()
    words = (save(tmp_path, module), tmp_path / "theirs.safetensors", "--input_size", 96, 64)
    code, text = command(convert_timm, *words)
    assert code == 0 and "img_size=(96, 64)" in text
    images = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        assert torch.allclose(create(text)(images), module(images), atol=1e-5)


def test_a_file_of_timm_with_its_classifier_becomes_ours(
    tmp_path: Path, command: Command, reload: Any
) -> None:
    torch.manual_seed(4)
    model = library.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64).eval()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "theirs.safetensors")
    code, text = command(convert_timm, tmp_path / "theirs.safetensors", tmp_path / "ours.pth")
    assert code == 0 and "150 of 150 tensors matched; not part of it: head (2)" in text
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        found = reload(tmp_path / "ours.pth")(images)
        assert torch.allclose(
            found, model.forward_head(model.forward_features(images), pre_logits=True), atol=1e-5
        )


def test_networks_of_timm_and_torchvision_go_there_and_back(
    tmp_path: Path, command: Command, reload: Any
) -> None:
    for arch in ("xcit_nano_12_p16", "timm:resnet10t"):
        module = build_backbone(arch).eval()
        code, text = command(
            convert_timm, save(tmp_path, module), tmp_path / "theirs.safetensors", "--arch", arch
        )
        assert code == 0, text
        assert (
            command(
                convert_timm, tmp_path / "theirs.safetensors", tmp_path / "back.pth", "--arch", arch
            )[0]
            == 0
        )
        assert equal_tensors(reload(tmp_path / "back.pth"), module)
        images = torch.randn(1, 3, 224, 224)
        with torch.inference_mode():
            assert torch.allclose(create(text)(images), module(images), atol=1e-5)


@pytest.mark.parametrize(
    ("arch", "reason"),
    [
        ("vit_micro", "timm has no network like vit_micro, which embeds"),
        ("googlenet", "timm has no network like"),
    ],
)
def test_what_timm_has_not_is_refused(
    tmp_path: Path, command: Command, arch: str, reason: str
) -> None:
    path = save(tmp_path, build_backbone(arch, img_size=64))
    code, text = command(convert_timm, path, tmp_path / "theirs.safetensors", "--arch", arch)
    assert code == 2 and reason in text and not (tmp_path / "theirs.safetensors").exists()


def test_a_vit_of_unknown_heads_is_refused(
    shared_data: Path, tmp_path: Path, command: Command
) -> None:
    words = (shared_data / "passl" / "sample_dino_tiny.pdparams", tmp_path / "theirs.safetensors")
    code, text = command(convert_timm, *words)
    assert code == 2 and "the number of heads is unknown" in text
