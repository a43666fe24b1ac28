"""transformers loads the folder that was written for it, computes the same, and what it saves
becomes ours."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dino.cli.convert import convert_huggingface
from dino.data.crops import center_crop
from dino.data.photometric import build_normalization
from dino.models.registry import build_backbone
from tests.weights.conftest import equal_tensors

Command = Callable[..., tuple[int, str]]


@pytest.fixture
def transformers() -> ModuleType:
    """The library; newer ones run no network on an older torch. What we read and write needs
    neither."""
    library = pytest.importorskip("transformers")
    if not library.utils.is_torch_available():
        pytest.skip(f"transformers {library.__version__} refuses torch {torch.__version__}")
    return library


def compare(transformers: ModuleType, folder: Path, module: Any, *shape: int) -> None:
    """Last hidden state, CLS and attentions of both on the same images."""
    theirs = transformers.ViTModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="eager"
    ).eval()
    images = torch.randn(2, *shape)
    with torch.inference_mode():
        found = theirs(images, output_attentions=True)
        tokens = module.get_intermediate_layers(images)[0]
        assert torch.allclose(found.last_hidden_state, tokens, atol=1e-5)
        assert torch.allclose(found.last_hidden_state[:, 0], module(images), atol=1e-5)
        assert torch.allclose(
            found.attentions[-1], module.get_last_selfattention(images), atol=1e-5
        )


def save(folder: Path, module: torch.nn.Module) -> Path:
    torch.save(module.state_dict(), folder / "ours.pth")
    return folder / "ours.pth"


@pytest.mark.parametrize(
    ("settings", "words", "shape"),
    [
        ({"img_size": 224}, (), (3, 224, 224)),
        ({"img_size": 224}, ("--input_size", 160), (3, 160, 160)),
        ({}, ("--input_size", 96, 64), (3, 96, 64)),
        ({"patch_size": 8, "in_chans": 1, "img_size": 40}, (), (1, 40, 40)),
    ],
)
def test_outputs_are_the_same(
    transformers: ModuleType,
    tmp_path: Path,
    command: Command,
    lively: Any,
    *,
    settings: dict[str, int],
    words: Any,
    shape: tuple[int, ...],
) -> None:
    module = lively(**settings)
    code, text = command(convert_huggingface, save(tmp_path, module), tmp_path / "theirs", *words)
    assert code == 0 and text.splitlines()[-1].endswith("42 of 42 tensors matched")
    compare(transformers, tmp_path / "theirs", module, *shape)


def test_transformers_own_interpolation_differs_by_what_the_page_says(
    transformers: ModuleType, tmp_path: Path, command: Command
) -> None:
    torch.manual_seed(11)
    module = build_backbone("vit_small", img_size=224).eval()
    assert command(convert_huggingface, save(tmp_path, module), tmp_path / "theirs")[0] == 0
    theirs = transformers.ViTModel.from_pretrained(
        tmp_path / "theirs", add_pooling_layer=False
    ).eval()
    images = torch.randn(1, 3, 320, 320)
    with torch.inference_mode():
        found = theirs(images, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        expected = module(images)
    assert 1e-4 < (found - expected).abs().max() / expected.abs().max() < 1e-3


def test_what_transformers_saves_becomes_ours(
    transformers: ModuleType, tmp_path: Path, command: Command, reload: Any
) -> None:
    config = transformers.ViTConfig(
        **{
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "intermediate_size": 192,
        },
        **{
            "image_size": 64,
            "patch_size": 16,
            "layer_norm_eps": 1e-6,
            "attn_implementation": "eager",
        },
    )
    torch.manual_seed(5)
    transformers.ViTModel(config).save_pretrained(tmp_path / "theirs")
    code, text = command(convert_huggingface, tmp_path / "theirs", tmp_path / "ours.pth")
    assert code == 0 and "42 of 42 tensors matched; not part of it: pooler (2)" in text
    compare(transformers, tmp_path / "theirs", reload(tmp_path / "ours.pth"), 3, 64, 64)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "classifier")
    code, text = command(convert_huggingface, tmp_path / "classifier", tmp_path / "classified.pth")
    assert code == 0 and "42 of 42 tensors matched; not part of it: classifier (2)" in text


def test_a_folder_says_how_our_evaluations_prepare_an_image(
    weights: Path, shared_data: Path, tmp_path: Path, command: Command
) -> None:
    assert command(convert_huggingface, weights, tmp_path / "theirs")[0] == 0
    processor = pytest.importorskip("transformers").AutoImageProcessor.from_pretrained(
        tmp_path / "theirs"
    )
    picture = Image.open(next((shared_data / "photos" / "val").rglob("*.jpg"))).convert("RGB")
    found = torch.from_numpy(processor(picture, return_tensors="np")["pixel_values"][0])
    view = center_crop(torch.from_numpy(np.array(picture)).permute(2, 0, 1), 64)
    stored = json.loads((tmp_path / "theirs" / "preprocessor_config.json").read_text())
    normalization = {"mean": stored["image_mean"], "std": stored["image_std"]}
    assert normalization == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    expected = build_normalization(3, normalization)(view)
    level = 1 / 255 / 0.2  # of the narrowest channel; resizers round differently
    assert found.shape == expected.shape and (found - expected).abs().max() <= 2 * level


def test_our_own_normalization_comes_back(
    weights: Path, tmp_path: Path, command: Command, reload: Any
) -> None:
    assert command(convert_huggingface, weights, tmp_path / "theirs")[0] == 0
    assert equal_tensors(reload(tmp_path / "theirs"), reload(weights))
    assert command(convert_huggingface, tmp_path / "theirs", tmp_path / "back.pth")[0] == 0
    state = torch.load(tmp_path / "back.pth", weights_only=True)
    assert state["normalisation"] == {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}


@pytest.mark.parametrize("arch", ["vit_micro", "resnet18"])
def test_what_transformers_vit_cannot_hold_is_refused(
    tmp_path: Path, command: Command, arch: str
) -> None:
    path = save(tmp_path, build_backbone(arch, img_size=64))
    code, text = command(convert_huggingface, path, tmp_path / "theirs", "--arch", arch)
    assert (
        code == 2
        and f"must be a plain ViT such as vit_small for transformers (got {arch})" in text
        and not (tmp_path / "theirs").exists()
    )
