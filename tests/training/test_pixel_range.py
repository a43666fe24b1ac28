"""The range of pixels stands in a run's checkpoint, and evaluations read with it."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dino.cli.options import parse
from dino.data.sources import open_images
from dino.devices.cpu import CpuDevice
from dino.errors import CheckpointError, OptionError
from dino.evaluation.config import KnnConfig
from dino.evaluation.features import LoaderConfig, extract_features
from dino.evaluation.runner import Runner
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from dino.training.config import TrainConfig
from dino.weights.load import choose_range
from tests.running import state_of, train

RANGE = (0.0, 4095.0)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four color pictures of 12 bits, and the same ones in 8."""
    root, random = tmp_path_factory.mktemp("images"), np.random.RandomState(0)
    for number in range(4):
        levels = random.randint(0, 4096, (20, 20, 3)).astype(np.uint16)
        for folder in ("twelve", "eight"):
            (root / folder).mkdir(exist_ok=True)
        cv2.imwrite(str(root / f"twelve/{number}.png"), levels[..., ::-1])
        scaled = np.rint(levels * (255 / 4095)).astype(np.uint8)
        Image.fromarray(scaled).save(root / f"eight/{number}.png")
    return root


@pytest.fixture(scope="module")
def trained(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with a range."""
    out = tmp_path_factory.mktemp("run")
    words = ("--data_path", images / "twelve", "--output_dir", out, "--epochs", 1)
    result = train(out, *words, "--pixel_range", "0,4095")
    assert result.code == 0, result.text
    return out


def open_evaluation(trained: Path, *words: str) -> Runner:
    weights = str(trained / "teacher_backbone.pth")
    config = parse(KnnConfig, ["--pretrained_weights", weights, "--num_workers", "0", *words])
    run = Run(device=CpuDevice("fp32"), processes=Processes(Launch(), "gloo", "env://"))
    return Runner(config, run)


def test_a_run_without_the_range_stops_and_names_it(images: Path, tmp_path: Path) -> None:
    result = train(tmp_path, "--data_path", images / "twelve", "--output_dir", tmp_path)
    assert result.code == 2
    assert "set --pixel_range 0,4095 for 12 bits" in result.text


def test_the_range_trains_as_8_bits_do(images: Path, trained: Path, tmp_path: Path) -> None:
    words = ("--data_path", images / "eight", "--output_dir", tmp_path, "--epochs", 1)
    assert train(tmp_path, *words).code == 0
    one, two = (state_of(folder) for folder in (trained, tmp_path))
    assert one["args"]["pixel_range"] == [*RANGE]
    assert two["args"]["pixel_range"] is None
    assert all(torch.equal(one["student"][name], two["student"][name]) for name in one["student"])


def test_evaluations_read_with_the_range_of_the_checkpoint(images: Path, trained: Path) -> None:
    runner = open_evaluation(trained)
    backbone = runner.load_backbone()
    assert backbone.pixel_range == RANGE
    reading = LoaderConfig(batch_size=4, workers=0)
    plain = dataclasses.replace(backbone, pixel_range=None)
    twelve, eight = (
        extract_features(network, open_images(str(images / folder)), runner.run, reading)
        for network, folder in ((backbone, "twelve"), (plain, "eight"))
    )
    assert torch.equal(twelve.features, eight.features)


def test_another_range_than_the_checkpoints_is_an_error(trained: Path) -> None:
    assert open_evaluation(trained, "--pixel_range", "0,4095").load_backbone().pixel_range == RANGE
    with pytest.raises(OptionError, match=r"`pixel_range` must be 0,4095, .* \(got 0,255\)"):
        open_evaluation(trained, "--pixel_range", "0,255").load_backbone()


def test_a_range_may_be_given_where_the_file_has_none() -> None:
    assert choose_range(RANGE, None) == choose_range(None, RANGE) == RANGE
    assert choose_range(None, None) is None
    with pytest.raises(OptionError, match="LO below HI"):
        choose_range((5.0, 5.0), None)


@pytest.mark.parametrize("stored", ["0,4095", [1], [0, "a"], {"low": 0}, [9, 1]])
def test_a_damaged_range_in_a_file_is_named(stored: object, trained: Path, tmp_path: Path) -> None:
    state = torch.load(trained / "teacher_backbone.pth", weights_only=True)
    state["args"]["pixel_range"] = stored
    torch.save(state, tmp_path / "teacher_backbone.pth")
    with pytest.raises((CheckpointError, OptionError), match="`pixel_range` must be"):
        open_evaluation(tmp_path).load_backbone()


@pytest.mark.parametrize(
    "words", [["0,4095"], ["0", "4095"], ["-1000,400"], ["-1000", "400"], ["0.5,1e3"]]
)
def test_a_range_is_two_numbers_with_or_without_a_comma(words: list[str]) -> None:
    config = parse(TrainConfig, ["--pixel_range", *words, "--epochs", "3"])
    assert config.train_data.pixel_range == tuple(map(float, ",".join(words).split(",")))
    assert config.run.epochs == 3


def test_a_recipe_may_write_the_range_either_way(tmp_path: Path) -> None:
    for text in ("pixel_range: 0,4095", "pixel_range: [0, 4095]"):
        (tmp_path / "a.yaml").write_text(text)
        config = parse(TrainConfig, ["--config", str(tmp_path / "a.yaml")])
        assert config.train_data.pixel_range == RANGE
    assert parse(TrainConfig, ["-o", "pixel_range=0,4095"]).train_data.pixel_range == RANGE
    with pytest.raises(OptionError, match=r"--pixel_range must be 2 float values"):
        parse(TrainConfig, ["--pixel_range", "0,1,2"])
