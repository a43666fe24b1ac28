"""`--preset auto --hours`: epochs and network from the measured speed, kept by a run that continues."""

from pathlib import Path

import pytest
import yaml

from dino.cli.options import parse
from dino.config import RECIPE, as_dict, change
from dino.data.image_source import ImageSource
from dino.data.sources import open_images
from dino.errors import OptionError
from dino.training import time_budget
from dino.training.choices import choose_settings
from dino.training.config import TrainConfig
from dino.training.time_budget import MOST_EPOCHS, choose_epochs, fit_hours
from tests.running import TINY, Job, make_images
from tests.training.test_build import run_of

NETWORK = TINY[: TINY.index("--epochs")]


def budget_of(hours: float, *words: str) -> TrainConfig:
    return parse(TrainConfig, ["--preset", "auto", "--hours", str(hours), *words])


def source_of(folder: Path, count: int) -> ImageSource:
    """`count` images, all of them the same file."""
    source = open_images(str(make_images(folder, 1, size=224)))
    return source.selected([0] * count)


@pytest.mark.parametrize(
    ("hours", "rate", "expected"),
    [(1, 10, 32), (0.01, 10, 1), (0, 10, 1), (100, 1000, MOST_EPOCHS)],
)
def test_epochs_fill_nine_tenths_of_the_time(hours: float, rate: float, expected: int) -> None:
    epochs, reason = choose_epochs(TrainConfig(), hours, rate, 1000)
    assert epochs == expected
    assert f"{hours:g} hours, {rate:.1f} images/s measured" in reason
    assert ("one epoch takes" in reason) == (hours < 0.02)


@pytest.mark.parametrize(
    ("count", "rates", "arch"),
    [
        (50_000, {"vit_small": 1e4}, "vit_small"),
        (50_000, {"vit_small": 1e2, "vit_micro": 1e4}, "vit_micro"),
        (50_000, {"vit_small": 1, "vit_micro": 2}, "vit_micro"),
        (400, {"vit_micro": 10}, "vit_micro"),
    ],
)
def test_the_largest_network_that_makes_enough_epochs_is_taken(
    count: int,
    rates: dict[str, float],
    arch: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = []

    def measure(config: TrainConfig, *_: object) -> float:
        measured.append(config.backbone.chosen_arch)
        return rates[measured[-1]]

    monkeypatch.setattr(time_budget, "measure_rate", measure)
    source, names = source_of(tmp_path, count), {"preset", "hours"}
    waiting, reasons = choose_settings(budget_of(1), names, source)
    assert (waiting.run.preset, waiting.run.hours, reasons) == ("auto", 1.0, {})
    config, reasons = fit_hours(waiting, names, run_of(), source)
    assert measured == list(rates)
    assert config.backbone.chosen_arch == arch
    assert config.run.epochs == choose_epochs(config, 1, rates[arch], count)[0]
    assert f"measured with {arch}" in reasons["epochs"]
    assert (config.run.preset, config.run.hours) == (None, None)
    assert fit_hours(config, names, run_of(), source) == (config, {})


def test_a_run_measures_once_and_continues_with_what_it_chose(tmp_path: Path) -> None:
    images, out = make_images(tmp_path / "images", 8), tmp_path / "run"
    words = (*NETWORK, "--data_path", str(images), "--output_dir", str(out))
    words += ("--preset", "auto", "--hours", "0.00001")
    first = Job(tmp_path, list(words)).wait()
    assert first.code == 0, first.text
    assert "--hours 1e-05: measuring the speed of a few updates" in first.text
    assert "--epochs 1 (auto: 1e-05 hours, " in first.text
    assert first.text.count("network: ") == 1
    assert "8 images are few to train from nothing" in first.text
    kept = yaml.safe_load((out / RECIPE).read_text())
    assert (kept["epochs"], kept["hours"], kept["preset"]) == (1, None, None)
    again = Job(tmp_path, list(words)).wait()
    assert again.code == 0, again.text
    assert "measuring" not in again.text
    assert "settings are as this run began" in again.text
    config = change(budget_of(1), {"output_dir": str(out)})
    chosen, _ = choose_settings(config, {"preset", "hours", "output_dir", "lr"})
    assert as_dict(chosen)["momentum_teacher"] == kept["momentum_teacher"]
    assert chosen.optim.lr == TrainConfig().optim.lr  # given, so not from the recipe


@pytest.mark.parametrize(
    ("words", "names", "text"),
    [
        (("--hours", "1"), {"hours"}, "`hours` 1 lets .* and there is no `preset`"),
        (
            ("--hours", "1", "--preset", "auto", "--epochs", "3"),
            {"hours", "preset", "epochs"},
            "`epochs` is given",
        ),
        (("--hours", "nan", "--preset", "auto"), set(), "between 0 and 100000"),
        (("--hours", "1", "--preset", "auto", "--dry_run"), {"hours"}, "both measure"),
    ],
)
def test_hours_that_mean_nothing_are_one_line(
    words: tuple[str, ...], names: set[str], text: str
) -> None:
    with pytest.raises(OptionError, match=text):
        choose_settings(parse(TrainConfig, list(words)), names)
