"""What the user watches: averages since the last line, log.txt under the original's keys."""

import json
import logging
import math
import time

import pytest
import torch

from dino.cli.options import parse
from dino.training.config import TrainConfig
from dino.training.plan import build_plan
from dino.training.report import LoaderStats, MeterSnapshot, Reporter, read_device
from dino.training.step_values import METERS

HEALTHY = {"entropy": 2.0, "divergence": 1.0}


def sums_of(steps, **means):
    """Meters after `steps` finite steps with these means."""
    return {
        "steps": float(steps),
        **{name: steps * means.get(name, 1.0) for name in METERS if name != "steps"},
    }


def reading_of(steps, masked=0, **means):
    return MeterSnapshot(sums=sums_of(steps, **means), masked=masked, masked_in_row=0)


@pytest.fixture
def plan():
    return build_plan(
        parse(TrainConfig, ["--epochs", "3", "--warmup_epochs", "1"]), iterations=10, world_size=2
    )


@pytest.fixture
def reporter(plan, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    reporter = Reporter(tmp_path, plan, prototypes=64, iteration=0, shown=True)
    yield reporter
    reporter.close()


@pytest.fixture
def scalars(reporter, monkeypatch):
    """What goes to TensorBoard: (tag, value, iteration)."""
    written = []
    monkeypatch.setattr(
        reporter.log, "write_scalars", lambda values, step: written.append((dict(values), step))
    )
    return written


def test_the_device_is_read_in_one_piece():
    class Program:
        meters = torch.arange(1.0, 1 + len(METERS))
        non_finite = torch.tensor([7.0, 2.0])

    reading = read_device(Program())
    assert reading.sums == {name: place + 1.0 for place, name in enumerate(METERS)}
    assert (reading.masked, reading.masked_in_row) == (7, 2)


def test_means_are_over_the_finite_steps_since_the_earlier_reading():
    means = reading_of(10, loss=5.0).mean_since(sums_of(4, loss=2.0))
    assert means["loss"] == pytest.approx((50 - 8) / 6)
    assert reading_of(10, loss=5.0).mean_since({})["loss"] == pytest.approx(5.0)
    assert "steps" not in means


def test_without_a_finite_step_there_is_no_mean():
    means = reading_of(4).mean_since(sums_of(4))
    assert means and all(math.isnan(value) for value in means.values())


def test_a_log_line_shows_loss_rate_speed_and_wait(reporter, plan, scalars, caplog):
    reporter.report(reading_of(5, loss=3.25, **HEALTHY), 5)
    line = caplog.records[-1].getMessage()
    assert all(
        word in line
        for word in ("5/30", "epoch 1/3", "loss 3.2500", "lr ", "images/s ", "data wait ", "eta ")
    )
    assert "skipped" not in line
    values, step = scalars[-1]
    assert step == 5
    assert {"examples/sec", "iter_time", "data_time", "loss", "lr", "wd"} <= values.keys()
    assert {"entropy", "feature_std", "centre_norm", "grad_norm", "divergence"} <= values.keys()
    assert (values["lr"], values["wd"]) == (plan.learning_rate[4], plan.weight_decay[4])
    assert values["examples/sec"] * values["iter_time"] == pytest.approx(plan.global_batch)


def test_each_line_is_about_the_steps_since_the_last_one(reporter, scalars):
    reporter.report(reading_of(5, loss=4.0, **HEALTHY), 5)
    reporter.report(reading_of(10, loss=3.0, **HEALTHY), 10)
    assert scalars[-1][0]["loss"] == pytest.approx(2.0)


def test_masked_steps_are_shown(reporter, scalars, caplog):
    reporter.report(reading_of(4, masked=1, **HEALTHY), 5)
    assert "skipped steps 1" in caplog.records[-1].getMessage()
    assert scalars[-1][0]["non_finite_steps"] == 1


def test_a_line_without_a_finite_step_is_no_collapse(reporter, caplog):
    reporter.report(MeterSnapshot(sums=sums_of(0), masked=4, masked_in_row=4), 4)
    assert "loss nan" in caplog.text
    assert "collapse" not in caplog.text


def report_wait(reporter, steps, share):
    """One log line of five iterations of which the device waited `share` of the time."""
    reporter.begin_window(steps - 5, {})
    reporter.began -= 100.0  # seconds ago, so that what the test itself takes does not matter
    reporter.waited = 100.0 * share
    reporter.report(reading_of(5, **HEALTHY), steps)


def test_waiting_for_images_is_explained_once_and_not_in_the_first_lines(plan, tmp_path, caplog):
    feeding = LoaderStats(workers=2, cores=8)
    reporter = Reporter(tmp_path, plan, prototypes=64, iteration=0, shown=True, feeding=feeding)
    for line, share in enumerate([0.9, 0.9, 0.05, 0.4, 0.6], start=1):
        caplog.clear()
        report_wait(reporter, 5 * line, share)
        expected = (
            [f"training waited for images 40 % of the time: {feeding.explain()}"]
            if line == 4
            else []
        )
        assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == expected
    reporter.close()


@pytest.mark.parametrize(
    ("workers", "cores", "words"),
    [
        (0, 64, ["`num_workers` 0", "try `num_workers` 4"]),
        (1, 8, ["1 loader process and 8 cores", "try `num_workers` 2,", "smaller"]),
        (10, 12, ["10 loader processes and 12 cores", "try `num_workers` 12,", "smaller"]),
        (
            10,
            1,
            [
                "10 loader processes and 1 core,",
                "more `num_workers` will not help",
                "smaller",
                "shards",
            ],
        ),
    ],
)
def test_the_explanation_of_waiting_fits_the_cores(workers, cores, words):
    text = LoaderStats(workers=workers, cores=cores).explain()
    assert all(word in text for word in words) and "\n" not in text


def test_the_wait_goes_to_tensorboard_under_the_references_tag(reporter, scalars):
    report_wait(reporter, 10, 0.5)
    values = scalars[-1][0]
    assert values["data_time"] == pytest.approx(10.0, rel=0.01)
    assert values["data_wait_share"] == pytest.approx(0.5, rel=0.01)


def test_scores_say_when_they_were_taken(reporter, scalars, caplog):
    reporter.report_scores({"own_view": 2.9}, 0)
    reporter.report_scores({"own_view": 36.5, "rankme": 12.0}, 30)
    assert caplog.messages[-2:] == [
        "scores before training: own_view 2.90",
        "scores at iteration 30: own_view 36.50, rankme 12.00",
    ]
    assert [step for _, step in scalars] == [0, 30]


def test_an_epoch_is_one_json_line_under_the_originals_keys(reporter, plan, tmp_path):
    reporter.end_epoch(reading_of(10, loss=3.5, entropy=2.0), 10, {"knn": 40.0})
    reporter.end_epoch(reading_of(10, loss=3.0), 20, {})
    first, second = (json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines())
    assert list(first)[:4] == ["train_loss", "train_lr", "train_wd", "epoch"]
    assert (first["train_loss"], first["epoch"], first["knn"]) == (3.5, 0, 40.0)
    assert (first["train_lr"], first["train_wd"]) == (plan.learning_rate[9], plan.weight_decay[9])
    assert first["train_entropy"] == 2.0
    assert second["epoch"] == 1


def test_an_epoch_without_a_finite_step_is_still_valid_json(reporter, tmp_path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    reporter.end_epoch(MeterSnapshot(sums=sums_of(0), masked=3, masked_in_row=0), 10, {})
    assert json.loads((tmp_path / "log.txt").read_text(), parse_constant=refuse)["epoch"] == 0


def test_a_process_that_is_not_the_first_writes_and_says_nothing(plan, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    sinks = ("tensorboard", "jsonl", "csv", "wandb", "mlflow")
    reporter = Reporter(tmp_path, plan, prototypes=64, iteration=0, shown=False, log_to=sinks)
    reporter.report(reading_of(5, **HEALTHY), 5)
    reporter.end_epoch(reading_of(10), 10, {})
    reporter.close()
    assert caplog.records == []
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_takes_back_the_lines_it_will_write_anew(plan, tmp_path):
    lines = [json.dumps({"train_loss": 1.0, "epoch": epoch}) + "\n" for epoch in range(3)]
    (tmp_path / "log.txt").write_text("".join(lines) + '{"train_lo')
    Reporter(tmp_path, plan, prototypes=64, iteration=10, shown=True).close()
    assert (tmp_path / "log.txt").read_text() == lines[0]


def test_the_end_is_estimated_once_after_a_few_steps(plan, reporter, caplog):
    for lines in (1, 2, 3):
        reporter.began = time.monotonic() - 20
        reporter.report(reading_of(10 * lines, **HEALTHY), 10 * lines)
    (estimate,) = (text for text in caplog.messages if "training ends in" in text)
    assert estimate.startswith("10 iterations left at 2 s: training ends in about 0:00:20, on ")
