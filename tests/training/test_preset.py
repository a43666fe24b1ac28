"""`--preset auto`: a table of cases, the original's own runs, and what holds at any scale."""

import logging

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.cli.options import parse, parse_command
from dino.config import RECIPE, as_dict
from dino.training.choices import apply_preset, log_reasons
from dino.training.config import TrainConfig
from dino.training.plan import choose_warmup
from dino.training.preset import Scale, choose_values
from tests.running import TINY, make_images, train, train_pair

IMAGENET = 1_281_167
NAMES = (
    "out_dim",
    "momentum_teacher",
    "warmup_teacher_temp",
    "teacher_temp",
    "warmup_teacher_temp_epochs",
)
NAMES += ("lr", "warmup_epochs")
# images, global batch, epochs: values in the order of NAMES
TABLE = {
    (1_000, 32, 100): (1024, 0.99, 0.03, 0.03, 0, 0.00141, 10),
    (1_000, 256, 100): (1024, 0.99, 0.03, 0.03, 0, 0.0005, 10),
    (20_000, 32, 100): (1024, 0.9984, 0.03, 0.03, 0, 0.00141, 10),
    (20_000, 256, 100): (1024, 0.99, 0.03, 0.03, 0, 0.0005, 10),
    (20_000, 1024, 300): (1024, 0.99, 0.03, 0.03, 0, 0.0005, 10),
    (100_000, 32, 100): (4096, 0.9995, 0.04, 0.04, 0, 0.00141, 10),
    (100_000, 256, 100): (4096, 0.9974, 0.04, 0.04, 0, 0.0005, 10),
    (100_000, 1024, 100): (4096, 0.99, 0.04, 0.04, 0, 0.0005, 10),
    (IMAGENET, 32, 100): (65536, 0.9995, 0.04, 0.04, 0, 0.00141, 10),
    (IMAGENET, 256, 100): (65536, 0.9995, 0.04, 0.04, 0, 0.0005, 10),
    (IMAGENET, 512, 100): (65536, 0.996, 0.04, 0.04, 0, 0.0005, 10),
    (IMAGENET, 1024, 300): (65536, 0.996, 0.04, 0.07, 30, 0.0005, 10),
    (IMAGENET, 4096, 300): (65536, 0.996, 0.04, 0.07, 30, 0.00025, 10),
    (IMAGENET, 1024, 5): (65536, 0.99, 0.04, 0.04, 0, 0.0005, 10),
    (5_350, 64, 26): (1024, 0.99, 0.03, 0.03, 0, 0.001, 2),
    (150_000, 256, 40): (16384, 0.9957, 0.04, 0.04, 0, 0.0005, 4),
    (300_000, 256, 50): (32768, 0.9983, 0.04, 0.04, 0, 0.0005, 5),
}
SCALES = st.builds(
    Scale,
    images=st.integers(1, 10**8),
    global_batch=st.integers(1, 10**5),
    epochs=st.integers(1, 2000),
)


def scale_of(images, batch, epochs, **more):
    return Scale(images=images, global_batch=batch, epochs=epochs, **more)


@pytest.mark.parametrize(("case", "expected"), TABLE.items(), ids=str)
def test_the_table_of_cases(case, expected):
    found = choose_values(scale_of(*case))
    wanted = dict(zip(NAMES, expected, strict=True))
    if case[-1] < 10:  # the default warm-up is shortened when the run is planned
        del wanted["warmup_epochs"]
    assert {name: found[name].value for name in NAMES if name in found} == wanted


@pytest.mark.parametrize("recipe", ["vits16_vanilla", "vits16_boosted"])
def test_the_originals_runs_get_the_originals_values(recipe):
    options = parse(TrainConfig, ["--config", f"configs/{recipe}.yaml"])
    batch = {"vits16_vanilla": 512, "vits16_boosted": 1024}[recipe]
    values = as_dict(options)
    found = choose_values(scale_of(IMAGENET, batch, options.run.epochs))
    assert {name: choice.value for name, choice in found.items()} == {
        name: values[name] for name in NAMES
    }


def test_other_optimizers_have_the_rate_of_convnets():
    choice = choose_values(scale_of(IMAGENET, 512, 100, optimizer="sgd"))["lr"]
    assert choice.value == 0.03 and "sgd" in choice.reason


@settings(max_examples=200)
@given(scale=SCALES)
def test_at_any_scale_the_values_are_allowed_and_have_reasons(scale):
    found = choose_values(scale)
    words = [word for name, choice in found.items() for word in (f"--{name}", str(choice.value))]
    options = parse(TrainConfig, [*words, "--epochs", str(scale.epochs)])
    assert all(choice.reason for choice in found.values())
    assert options.teacher.warmup_teacher_temp_epochs <= 0.1 * scale.epochs
    assert choose_warmup(options, 10) <= scale.epochs  # of 10 iterations an epoch
    assert 0.99 <= options.teacher.momentum_teacher < 1 and options.teacher.teacher_temp <= 0.07


@settings(max_examples=100)
@given(scale=SCALES, factor=st.integers(2, 50))
def test_more_images_never_want_fewer_prototypes_or_a_faster_teacher(scale, factor):
    more = scale_of(scale.images * factor, scale.global_batch, scale.epochs)
    few, many = choose_values(scale), choose_values(more)
    assert few["out_dim"].value <= many["out_dim"].value
    assert few["momentum_teacher"].value <= many["momentum_teacher"].value


def preset_of(*words):
    return parse_command(TrainConfig, [*TINY, "--preset", "auto", *map(str, words)], apply_preset)


def test_what_is_given_stays_and_the_rest_is_chosen_and_said(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "8")
    images = make_images(tmp_path / "images", 12)
    options, given, reasons = preset_of(
        "--data_path", images, "--momentum_teacher", 0.9, "--accumulate_steps", 2, "--epochs", 30
    )
    assert (options.teacher.momentum_teacher, options.student.out_dim) == (0.9, 16)  # both given
    assert options.optim.lr == 0.001 and "global batch 64" in reasons["lr"]  # 4 x 2 x 8
    assert options.optim.warmup_epochs == 3 and reasons.keys() == {
        *NAMES,
        *("use_bn_in_head", "drop_path_rate", "init_from", "preset"),
    } - {"out_dim", "momentum_teacher", "drop_path_rate"}
    assert options.run.preset is None and reasons.keys() & given == {"preset"}
    with caplog.at_level(logging.INFO):
        log_reasons(options, reasons)
    assert (
        "`lr` 0.001 (auto: global batch 64 is outside 256 to 1024: square-root scaling"
        in caplog.text
    )


def test_without_a_preset_nothing_changes_and_nothing_is_listed():
    options = parse(TrainConfig, ["--data_path", "nowhere"])
    resolved, reasons = apply_preset(options, {"data_path"})
    assert resolved is options and reasons == {}


def test_the_reasons_are_printed_beside_the_values(tmp_path, capsys):
    images = make_images(tmp_path / "images", 8)
    with pytest.raises(SystemExit):
        preset_of("--data_path", images, "--print_config")
    text = capsys.readouterr().out
    assert "teacher_temp: 0.03  # auto: 8 images, up to 20000" in text
    assert "preset: null  # auto was applied; it chose the values marked so\n" in text
    (tmp_path / "printed.yaml").write_text(text)
    again, _, reasons = parse_command(
        TrainConfig, ["--config", str(tmp_path / "printed.yaml")], apply_preset
    )
    assert as_dict(again) == as_dict(preset_of("--data_path", images)[0]) and reasons == {}


def test_a_run_keeps_its_recipe_and_the_recipe_repeats_it(tmp_path):
    words = ("--data_path", make_images(tmp_path / "images", 16), "--epochs", 1)
    first = train(tmp_path, *words, "--preset", "auto", "--output_dir", tmp_path / "first")
    assert first.code == 0 and "--lr 0.004 (auto: global batch 4" in first.text, first.text
    kept = yaml.safe_load((tmp_path / "first" / RECIPE).read_text())
    assert (kept["lr"], kept["momentum_teacher"], kept["out_dim"], kept["preset"]) == (
        0.004,
        0.99,
        16,
        None,
    )
    again = train(
        tmp_path,
        "--config",
        tmp_path / "first" / RECIPE,
        "--epochs",
        1,
        "--output_dir",
        tmp_path / "again",
    )
    assert again.code == 0 and "auto:" not in again.text, again.text
    logs = [(tmp_path / name / "log.txt").read_text() for name in ("first", "again")]
    assert logs[0] == logs[1]


def test_two_processes_agree_on_the_preset(tmp_path):
    words = ("--data_path", make_images(tmp_path / "images", 16), "--epochs", 1, "--preset", "auto")
    results = train_pair(tmp_path, *words, "--output_dir", tmp_path / "run")
    assert [result.code for result in results] == [0, 0], results
    assert "global batch 8" in results[0].text and "auto:" not in results[1].text
