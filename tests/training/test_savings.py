"""What would make a run shorter: operations that are left out, and never a guess."""

from __future__ import annotations

import pytest

from dino.training import savings
from dino.training.config import TrainConfig
from dino.training.savings import describe_savings, format_hours, list_changes
from tests.training.test_dry_run import options_of

VIT = ("--arch", "vit_small", "--patch_size", 8, "--out_dim", 64, "--batch_size_per_device", 2)
CROPS = ("--global_crops_size", 224, "--local_crops_size", 96, "--local_crops_number", 8)


def count(config: TrainConfig) -> float:
    """Operations of a made-up network: its tokens, times its width."""
    crops, backbone = config.crops, config.backbone
    sides = [crops.global_crops_size] * 2 + [crops.local_crops_size] * crops.local_crops_number
    pixels = sum(side**2 for side in sides)
    return pixels / backbone.chosen_patch_size**2 * {"vit_small": 2, "vit_tiny": 1}[backbone.arch]


def test_the_hours_follow_the_operations_of_the_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "count_flops", count)
    config = options_of(*VIT, *CROPS)
    shares = {"student": 0.2, "teacher": 0.1, "backward": 0.45, "loss": 0.05, "transfer": 0.2}
    (line,) = describe_savings(config, 100.0, flops=count(config), shares=shares)
    # 20 hours are not the networks'; of 174,080 pixels, smaller crops leave 124,928.
    parts = "`patch_size` 16 40.0, `arch` vit_tiny 60.0, `global_crops_size` 160 77.4"
    assert line == f"shorter, in hours (estimates): {parts}"


def test_what_saves_little_or_does_not_apply_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(savings, "count_flops", count)
    config = options_of("--local_crops_number", 0)
    assert dict(list_changes(config)) == {}
    assert describe_savings(config, 1.0, flops=1.0, shares={"student": 1.0}) == []
    config = options_of(*VIT, *CROPS)
    assert [text for text, _ in list_changes(config)] == [
        "`local_crops_number` 4",
        "`global_crops_size` 160",
        "`patch_size` 16",
        "`arch` vit_tiny",
    ]
    assert describe_savings(config, 1.0, flops=count(config), shares={"update": 1.0}) == []


@pytest.mark.parametrize(
    ("hours", "text"), [(12345.67, "12,345.7"), (1.04, "1.0"), (0.667, "0.67"), (0.0012, "0.0012")]
)
def test_few_hours_have_two_digits(hours: float, text: str) -> None:
    assert format_hours(hours) == text
