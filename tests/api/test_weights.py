"""`dino.load` takes what --pretrained_weights takes, and says how to feed the network."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import dino
import hubconf
from dino.cli.convert import convert_huggingface
from dino.errors import CheckpointError, OptionError, WeightsError
from dino.models.registry import VITS, VitShape, build_backbone
from tests.api.conftest import MEAN, STD


def test_a_file_gives_an_eval_mode_module_that_says_how_to_feed_it(weights: Path) -> None:
    backbone = dino.load(weights)
    assert not backbone.training
    assert (backbone.arch, backbone.patch_size, backbone.image_size, backbone.in_chans) == (
        "vit_mini",
        8,
        32,
        3,
    )
    assert backbone.normalization.mean == tuple(MEAN) and backbone.normalization.std == tuple(STD)
    pixels = torch.full((2, 3, 32, 32), 255, dtype=torch.uint8)
    wanted = (torch.ones(3) - torch.tensor(MEAN)) / torch.tensor(STD)
    normalized = backbone.normalization(pixels)
    assert torch.allclose(normalized[0, :, 0, 0], wanted)
    assert backbone(normalized).shape == (2, backbone.embed_dim) == (2, 96)
    assert dino.load(str(weights)).state_dict().keys() == backbone.state_dict().keys()


def test_a_hugging_face_folder_gives_the_same_features(weights: Path, tmp_path: Path) -> None:
    convert_huggingface([str(weights), str(tmp_path / "hf")])
    backbone, images = dino.load(tmp_path / "hf"), torch.randn(2, 3, 32, 32)
    assert torch.allclose(backbone(images), dino.load(weights)(images), atol=1e-5)
    assert backbone.normalization.mean == pytest.approx(MEAN)


def test_hub_names_load_the_tensors_that_hubconf_loads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(VITS, "vit_small", VitShape(embed_dim=24, depth=2, heads=2))
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    torch.save(
        build_backbone("vit_small", patch_size=8).state_dict(),
        tmp_path / "dino_deitsmall8_pretrain.pth",
    )
    ours, theirs = dino.load("hub:dino_vits8"), hubconf.dino_vits8()
    assert not ours.training and theirs.training
    assert (ours.arch, ours.patch_size, ours.image_size) == ("vit_small", 8, 224)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(
        torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items()
    )


def test_timm_names_load_from_the_mirror_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    model = timm.create_model("test_resnet", pretrained=False).eval()
    save_file(model.state_dict(), tmp_path / "test_resnet.safetensors")
    backbone, images = dino.load("timm:test_resnet"), torch.randn(2, 3, 160, 160)
    assert backbone.arch == "timm:test_resnet"
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.allclose(backbone(images), expected, atol=1e-5)


def test_what_cannot_be_loaded_is_an_error(weights: Path, tmp_path: Path) -> None:
    for wrong, kind, text in (
        (tmp_path / "no.pth", CheckpointError, "no.pth does not exist"),
        ("hub:dino_vits15", WeightsError, "did you mean dino_vits16"),
        ("", WeightsError, "the name of the weights is empty"),
        (None, TypeError, "os.PathLike"),
    ):
        with pytest.raises(kind, match=text):
            dino.load(wrong)
    with pytest.raises(WeightsError, match=r"no network 'pupil'"):
        dino.load(weights, checkpoint_key="pupil")
    with pytest.raises(OptionError, match="`patch_size` must be of type int"):
        dino.load(weights, patch_size="16")
    with pytest.raises(WeightsError, match="tensors do not fit"):
        dino.load(weights, arch="vit_tiny")


def test_list_models_names_what_arch_takes() -> None:
    assert {"vit_small", "vit_base"} <= set(dino.list_models())
    assert isinstance(build_backbone(dino.list_models()[-1], patch_size=16), nn.Module)


class Flat(nn.Module):
    """Its features are the pixels that it is given."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_the_transform_gives_the_input_that_embed_gives_to_the_bit(
    backbone: nn.Module, pictures: Path
) -> None:
    files = sorted(pictures.iterdir())
    transform = dino.transform(backbone)
    flat = Flat()
    flat.image_size, flat.normalization = backbone.image_size, backbone.normalization
    given = dino.embed(flat, pictures, device="cpu", num_workers=0).vectors
    views = torch.stack([transform(file) for file in files])
    assert views.shape[1:] == (3, 32, 32) and torch.equal(views.flatten(1), given)
    with torch.inference_mode():
        features = backbone(views)
    assert torch.equal(features, dino.embed(backbone, pictures, device="cpu").vectors)


def test_the_transform_of_a_foreign_module_is_imagenets() -> None:
    image = torch.arange(3 * 40 * 50).reshape(3, 40, 50).to(torch.uint8)
    given = dino.embed(Flat(), [image], device="cpu").vectors
    assert torch.equal(dino.transform(Flat())(image).flatten()[None], given)


def test_a_transform_without_torchvision_is_one_line(
    backbone: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(OptionError, match=r"^dino\.transform needs torchvision, which cannot"):
        dino.transform(backbone)
