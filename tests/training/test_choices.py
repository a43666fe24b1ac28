"""Settings that the images decide: mean and standard deviation of the pixels."""

import json
from pathlib import Path

import pytest
import torch
import yaml

import dino
from dino.cli.options import parse
from dino.config import RECIPE, as_dict, build
from dino.data.photometric import IMAGENET_STD, Normalization
from dino.data.pixel_statistics import measure_pixels
from dino.data.sources import open_images
from dino.errors import OptionError
from dino.models.config import BackboneConfig, WeightsConfig
from dino.training.build import choose_normalization
from dino.training.checks import check_settings
from dino.training.choices import choose_settings, read_earlier
from dino.training.config import TrainConfig
from dino.weights.load import load_backbone
from tests.running import make_images, state_of, train

NUMBERS = ("--mean", "0.5,0.25,0.125", "--std", "0.5", "0.25", "0.2")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("data") / "images", 8)


@pytest.fixture(scope="module")
def measured(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run that measured its pixels."""
    out = tmp_path_factory.mktemp("run")
    result = train(out, *words_of(images, out), "--mean", "auto", "--std", "auto")
    assert result.code == 0, result.text
    assert "(auto: of 8 images)" in result.text
    return out


def words_of(images: Path, out: Path, epochs: int = 1) -> tuple[object, ...]:
    return ("--data_path", images, "--output_dir", out, "--epochs", epochs)


def test_auto_is_what_the_images_have_and_travels_with_the_weights(
    images: Path, measured: Path, tmp_path: Path
) -> None:
    expected = measure_pixels(open_images(str(images)), 3)
    state = state_of(measured)
    stored = {"mean": [*expected.mean], "std": [*expected.std]}
    assert {name: state["args"][name] for name in stored} == stored == state["normalisation"]
    assert yaml.safe_load((measured / RECIPE).read_text())["mean"] == stored["mean"]
    weights = measured / "teacher_backbone.pth"
    assert dino.load(weights).normalization == expected  # as `embed` and `attention` read
    config = WeightsConfig(pretrained_weights=str(weights))
    assert load_backbone(BackboneConfig(), config).normalization == stored  # as evaluations do
    assert train(tmp_path, *words_of(images, tmp_path)).code == 0
    plain = state_of(tmp_path)["student"]
    assert any(not torch.equal(plain[name], state["student"][name]) for name in plain)


def test_conversions_carry_mean_and_deviation(measured: Path, tmp_path: Path) -> None:
    from dino.cli import convert

    expected = state_of(measured)["normalisation"]
    convert.main([str(measured / "checkpoint.pth"), str(tmp_path / "hf"), "--to", "huggingface"])
    images = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert [images["image_mean"], images["image_std"]] == [expected["mean"], expected["std"]]


def test_a_run_continues_with_what_it_measured(
    images: Path, measured: Path, tmp_path: Path
) -> None:
    words = ("--mean", "auto", "--std", "auto")
    settings = parse(TrainConfig, [*map(str, words_of(images, measured)), *words])
    again, reasons = choose_settings(settings, {"mean", "std"})
    assert as_dict(again)["mean"] == state_of(measured)["args"]["mean"]
    assert reasons == dict.fromkeys(("mean", "std"), "auto: as this run began")
    other = train(tmp_path, *words_of(images, measured, 2), *NUMBERS)
    assert other.code == 2
    assert "belongs to a run with mean [" in other.text


def test_given_weights_choose_network_sizes_and_pixels(
    images: Path, measured: Path, tmp_path: Path
) -> None:
    weights = str(measured / "teacher_backbone.pth")
    words = ["--preset", "auto", "--init_from", weights, *map(str, words_of(images, tmp_path, 20))]
    config, reasons = choose_settings(parse(TrainConfig, words), {"init_from", "epochs"})
    chosen, stored = as_dict(config), state_of(measured)["args"]
    for name in ("arch", "patch_size", "global_crops_size", "mean", "std"):
        assert chosen[name] == stored[name]
    assert (chosen["freeze_last_layer"], chosen["warmup_epochs"]) == (2, 2)
    assert "init_from" not in reasons  # no advice to do what is done
    check_settings(config)


def test_a_damaged_recipe_holds_no_earlier_choice(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").touch()
    assert read_earlier(tmp_path) == {}
    for text in ("a: [", "just text", "\x00"):
        (tmp_path / RECIPE).write_text(text)
        assert read_earlier(tmp_path) == {}


def test_an_edited_recipe_with_a_mean_of_words_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pth").touch()
    (tmp_path / RECIPE).write_text("mean: [a, b, c]")
    config = parse(TrainConfig, ["--mean", "auto", "--output_dir", str(tmp_path)])
    with pytest.raises(OptionError, match="^`mean` must be"):
        choose_settings(config, {"mean"})


def test_numbers_replace_imagenets_and_none_leave_them() -> None:
    config = parse(TrainConfig, [*NUMBERS])
    expected = Normalization(mean=(0.5, 0.25, 0.125), std=(0.5, 0.25, 0.2))
    assert choose_normalization(config) == expected
    assert choose_normalization(TrainConfig()) == Normalization()
    assert as_dict(TrainConfig())["mean"] is None
    only_mean = build(TrainConfig, {"mean": [0.1, 0.2, 0.3]})
    assert choose_normalization(only_mean) == Normalization(mean=(0.1, 0.2, 0.3), std=IMAGENET_STD)
    assert build(TrainConfig, {"mean": "auto"}).train_data.mean == "auto"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--mean", "0.5"], r"`mean` must be 3 finite numbers, one per channel \(got 0.5\)"),
        (["--mean", "0.5,nan,1"], r"\(got 0.5,nan,1\)"),
        (["--std", "1,1,0"], r"`std` must be 3 finite numbers above 0, one per channel"),
        (["--std", "1,1", "--in_chans", "1"], "`std` must be 1 finite number above 0"),
        (["--std", "auto"], "`std` auto needs images; give numbers"),
    ],
)
def test_wrong_numbers_are_one_line(words: list[str], text: str) -> None:
    with pytest.raises(OptionError, match=text):
        check_settings(parse(TrainConfig, words))


def test_other_words_than_auto_and_images_that_are_not_read_are_one_line() -> None:
    with pytest.raises(OptionError, match=r"--mean must be one or more float values or auto \(got"):
        parse(TrainConfig, ["--mean", "automatic"])
    with pytest.raises(OptionError, match="`mean` must be of type float"):
        build(TrainConfig, {"mean": "automatic"})
    synthetic = parse(TrainConfig, ["--synthetic_data", "--mean", "auto"])
    with pytest.raises(OptionError, match="`mean` auto measures images"):
        choose_settings(synthetic, {"mean", "synthetic_data"})
