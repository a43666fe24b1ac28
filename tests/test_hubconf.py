"""torch.hub finds the published backbones in this folder, under the original's names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import hubconf
from dino.errors import WeightsError
from dino.models.registry import VITS, VitShape, build_backbone
from dino.weights.hub import HUB

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A mirror folder, toy sizes, and nothing to download."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no network here")

    monkeypatch.setitem(VITS, "vit_small", VitShape(embed_dim=24, depth=2, heads=2))
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))


def load(name: str, **settings: Any) -> torch.nn.Module:
    return torch.hub.load(str(ROOT), name, source="local", **settings)


def test_every_recorded_name_is_there(shared_facts: Path) -> None:
    recorded = json.loads((shared_facts / "published_weights.json").read_text())["weights"]
    names = {name for entry in recorded for name in entry["hub_names"]}
    assert {name for name in vars(hubconf) if name.startswith("dino_")} == names == HUB.keys()
    for entry in recorded:
        text = getattr(hubconf, entry["hub_names"][0]).__doc__
        for score in (entry["knn_top1"], entry["linear_top1"]):
            assert score is None or f"{score} %" in text


@pytest.mark.parametrize("name", ["dino_vits8", "dino_deits8"])
def test_pretrained_weights_come_from_the_mirror(name: str, tmp_path: Path) -> None:
    module = build_backbone("vit_small", patch_size=8)
    torch.save(module.state_dict(), tmp_path / "dino_deitsmall8_pretrain.pth")
    found = load(name)
    assert found.training
    assert all(
        torch.equal(found.state_dict()[key], value) for key, value in module.state_dict().items()
    )
    gray = load(name, in_chans=1, img_size=64)
    assert gray(torch.zeros(2, 1, 64, 64)).shape == (2, 24)
    expected = module.patch_embed.proj.weight.sum(1, keepdim=True)
    assert torch.allclose(gray.patch_embed.proj.weight, expected)


@pytest.mark.parametrize(("name", "width"), [("dino_vits16", 24), ("dino_resnet50", 2048)])
def test_without_weights_nothing_is_read(name: str, width: int) -> None:
    assert load(name, pretrained=False).eval()(torch.zeros(1, 3, 224, 224)).shape == (1, width)


def test_tensors_too_many_or_missing_are_refused(tmp_path: Path) -> None:
    tensors = dict(build_backbone("vit_small").state_dict())
    torch.save(
        {**tensors, "head.weight": torch.zeros(3, 24)}, tmp_path / "dino_deitsmall16_pretrain.pth"
    )
    with pytest.raises(WeightsError, match=r"another network, with 1 tensors .*head\.weight"):
        load("dino_vits16")
    del tensors["norm.bias"]
    torch.save(tensors, tmp_path / "dino_deitsmall16_pretrain.pth")
    with pytest.raises(WeightsError, match=r"norm\.bias \(missing\)"):
        load("dino_vits16")


def test_offline_the_error_says_what_to_do() -> None:
    with pytest.raises(WeightsError, match="no network here.*DINO_WEIGHTS_DIR.*pretrained=False"):
        load("dino_vits16")
