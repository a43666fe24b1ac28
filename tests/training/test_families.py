"""Networks of other libraries train: two steps, weights that move, a teacher that does not draw."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dino
from dino import checkpoint
from dino.training import build as training_build
from dino.training.build import build_networks
from tests.training.test_build import options_of, run_of

TEN = (
    *("timm:test_vit", "timm:test_resnet", "timm:test_efficientnet", "timm:test_convnext"),
    *("timm:test_nfnet", "timm:test_byobnet", "timm:mobilenetv3_small_050", "timm:resnet10t"),
    *("squeezenet1_1", "shufflenet_v2_x0_5"),
)
SETTINGS = {"epochs": 1, "warmup_epochs": 0, "batch_size_per_device": 4, "num_workers": 0}
SETTINGS |= {"out_dim": 16, "device": "cpu", "saveckp_freq": 0}
CROPS = {"global_crops_size": 48, "local_crops_size": 32, "local_crops_number": 2}


@pytest.mark.parametrize("arch", TEN)
def test_ten_networks_train_two_steps(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = functools.partial(training_build.DINOHead, hidden_dim=32)
    monkeypatch.setattr(training_build, "DINOHead", head)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 48, 48, 3), dtype=np.uint8)
    result = dino.pretrain(
        [Image.fromarray(one) for one in pixels], tmp_path, arch=arch, **SETTINGS, **CROPS
    )
    assert [np.isfinite(line["train_loss"]) for line in result.history] == [
        True
    ]  # 8 images: 2 steps
    state = checkpoint.load_file(tmp_path / checkpoint.LATEST)
    for name, average in state["teacher"].items():
        if name.startswith("backbone.") and average.ndim > 1:
            assert not torch.equal(state["student"][f"module.{name}"], average), name
    assert result.teacher(torch.zeros(1, 3, 64, 64)).shape == (1, result.teacher.embed_dim)


@pytest.mark.parametrize("arch", ["squeezenet1_1", "efficientnet_b0", "timm:test_vit"])
def test_the_teacher_of_a_network_that_draws_does_not(arch: str) -> None:
    student, teacher = build_networks(options_of("--arch", arch, "--drop_path_rate", 0.5), run_of())
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(student.backbone(images), student.backbone(images))
        assert torch.equal(teacher.backbone(images), teacher.backbone(images))
