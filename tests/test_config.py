"""Settings as values: derived ones, the flat table, changed copies."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dino.config import UNSET, as_dict, as_recipe, build, change, chosen, derived, list_settings
from dino.evaluation.config import CopyDetectionConfig, KnnConfig, LinearConfig, RetrievalConfig
from dino.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class SizeConfig:
    """One derived setting, one that is not, one of two numbers."""

    width: int | None = derived(16)
    depth: int = 2
    scale: tuple[float, float] = (0.5, 1.0)


@dataclass(frozen=True, kw_only=True)
class Toy:
    """One group."""

    size: SizeConfig = SizeConfig()


def test_a_derived_setting_is_the_references_unless_it_is_given():
    assert SizeConfig().width is None and chosen(SizeConfig(), "width") == 16
    assert chosen(SizeConfig(width=8), "width") == 8
    assert chosen(SizeConfig(), "depth") == 2


def test_the_flat_table_is_plain_and_holds_the_references_numbers():
    assert list(list_settings(Toy())) == [("size", "width"), ("size", "depth"), ("size", "scale")]
    assert as_dict(Toy()) == {"width": 16, "depth": 2, "scale": [0.5, 1.0]}


def test_a_config_is_changed_by_setting_in_a_copy():
    options = TrainConfig()
    changed = change(options, {"lr": 1.0, "out_dim": 64, "arch": "vit_tiny"})
    assert (changed.optim.lr, changed.student.out_dim, changed.backbone.arch) == (
        1.0,
        64,
        "vit_tiny",
    )
    assert options == TrainConfig() and change(options, {}) == options
    groups = ("optim", "student", "backbone")
    assert (
        dataclasses.replace(changed, **{group: getattr(options, group) for group in groups})
        == options
    )


def test_a_setting_that_a_config_does_not_have_cannot_be_changed():
    with pytest.raises(KeyError, match="outdim"):
        change(TrainConfig(), {"outdim": 64})


def test_a_tilde_of_a_programs_path_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = build(TrainConfig, {"output_dir": Path("~/run"), "data_path": "~", "arch": "a~b"})
    assert (config.run.output_dir, config.data.data_path) == ("/home/me/run", "/home/me")
    assert config.backbone.arch == "a~b"


def test_a_recipe_holds_every_value_the_reasons_and_what_nobody_gave():
    text = as_recipe(
        change(Toy(), {"depth": 3, "width": 8}),
        given={"depth"},
        reasons={"width": "so said the file"},
    )
    assert "width: 8  # so said the file" in text.splitlines()
    assert yaml.safe_load(text) == {"width": 8, "depth": 3, "scale": [0.5, 1.0], UNSET: ["scale"]}


@pytest.mark.parametrize(
    "config", [TrainConfig, KnnConfig, LinearConfig, CopyDetectionConfig, RetrievalConfig]
)
def test_limits_are_of_settings_and_not_of_groups(config):
    assert [field.name for field in dataclasses.fields(config) if field.metadata] == []
