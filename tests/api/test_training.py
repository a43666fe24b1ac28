"""`dino.pretrain` trains as main_dino.py does, on a path or a program's images, and leaves the
program as it was."""

from __future__ import annotations

import functools
import json
import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import dino
import main_dino
from dino import checkpoint
from dino.config import build
from dino.errors import CheckpointError, DataError, DeviceError, Interrupted, OptionError
from dino.training import build as training_build
from dino.training.config import TrainConfig
from tests.api.tiny import (
    COUNT,
    RUN,
    WORDS,
    Acting,
    Pictures,
    assert_same_bits,
    draw_pixels,
    load_state,
    to_tensor,
)
from tests.running import SERVER

pytestmark = pytest.mark.usefixtures("hears_signals")
CHANGING = ("args", "identity")  # a folder has a fingerprint, a data set has not


@pytest.fixture(scope="module", autouse=True)
def _small_head() -> Iterator[None]:
    """The original's head has 5 million weights however small the backbone is; these runs are about
    everything else."""
    with pytest.MonkeyPatch.context() as patch:
        shrink_head(patch)
        yield


def shrink_head(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        training_build, "DINOHead", functools.partial(training_build.DINOHead, hidden_dim=64)
    )


@pytest.fixture(scope="module")
def whole(_small_head: None, tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The output folder of main_dino.py on the pictures, undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    root = logging.getLogger()
    before = root.handlers[:], root.level
    main_dino.main([*WORDS, "--data_path", str(pictures), "--output_dir", str(folder)])
    root.handlers[:], root.level = before
    return folder


def test_a_path_trains_to_main_dinos_bits(whole: Path, pictures: Path, tmp_path: Path) -> None:
    result = dino.pretrain(pictures, tmp_path / "run", **RUN)
    assert result.checkpoint == tmp_path / "run" / checkpoint.LATEST
    assert_same_bits(load_state(tmp_path / "run"), load_state(whole))
    assert result.history == [
        json.loads(line) for line in (whole / "log.txt").read_text().splitlines()
    ]
    assert [line["epoch"] for line in result.history] == [0, 1]
    assert not result.teacher.training and (result.teacher.arch, result.teacher.image_size) == (
        "vit_mini",
        16,
    )
    stored = load_state(whole)["teacher"]
    for name, tensor in result.teacher.state_dict().items():
        assert torch.equal(tensor, stored[f"backbone.{name}"]), name
    ours, theirs = (
        yaml.safe_load((folder / "recipe.yaml").read_text()) for folder in (tmp_path / "run", whole)
    )
    assert ours == {**theirs, "output_dir": str(tmp_path / "run")}


@pytest.mark.parametrize(
    ("images", "workers"),
    [
        pytest.param(Pictures(), 1, id="PIL, read by a loader process"),
        pytest.param(
            Pictures(convert=np.asarray, label=lambda index: f"class {index}"),
            0,
            id="arrays with labels",
        ),
        pytest.param([to_tensor(draw_pixels(index)) for index in range(COUNT)], 0, id="tensors"),
    ],
)
def test_a_programs_images_train_to_the_same_bits(
    images: Any, workers: int, whole: Path, tmp_path: Path
) -> None:
    dino.pretrain(images, tmp_path, **{**RUN, "num_workers": workers})
    assert_same_bits(load_state(tmp_path), load_state(whole), without=CHANGING)


def test_ctrl_c_saves_and_the_same_call_continues_to_the_same_bits(
    whole: Path, tmp_path: Path
) -> None:
    """The signal comes while the third of six batches is read, in epoch 0."""
    acting = Acting(9, lambda: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"^SIGINT: saved iteration 3 in .*checkpoint\.pth"):
        dino.pretrain(acting, tmp_path, **RUN)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert load_state(tmp_path)["resume"]["identity"]["iteration"] == 3
    result = dino.pretrain(Pictures(), tmp_path, **RUN)
    assert_same_bits(load_state(tmp_path), load_state(whole), without=CHANGING)
    assert len(result.history) == 2


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    def press_twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        dino.pretrain(Acting(9, press_twice), tmp_path, **RUN)
    assert not (tmp_path / checkpoint.LATEST).exists()


def test_ctrl_c_before_the_first_step_ends_at_once(tmp_path: Path) -> None:
    acting = Acting(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt, match="^nothing is saved$"):
        dino.pretrain(acting, tmp_path, **RUN)
    assert not (tmp_path / checkpoint.LATEST).exists()


def test_sigterm_saves_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="^SIGTERM: saved iteration 1 "):
        dino.pretrain(Acting(1, lambda: signal.raise_signal(signal.SIGTERM)), tmp_path, **RUN)


def kill_itself(folder: str) -> None:
    """A run that saves at each step and is killed in its second epoch; for a process of its own."""
    shrink_head(pytest.MonkeyPatch())
    killing = Acting(COUNT + 6, lambda: os.kill(os.getpid(), signal.SIGKILL))
    dino.pretrain(killing, folder, save_every_steps=1, **RUN)


def test_a_killed_run_continues_to_the_same_bits(whole: Path, tmp_path: Path) -> None:
    process = SERVER.Process(target=kill_itself, args=(str(tmp_path),))
    process.start()
    process.join(600)
    assert process.exitcode == -signal.SIGKILL
    # The kill comes after four steps, perhaps while the last one is being written.
    assert load_state(tmp_path)["resume"]["identity"]["iteration"] in {3, 4}
    dino.pretrain(Pictures(), tmp_path, **RUN)
    assert_same_bits(load_state(tmp_path), load_state(whole), without=CHANGING)


def test_other_images_do_not_continue_a_run(tmp_path: Path, pictures: Path) -> None:
    dino.pretrain(Pictures(), tmp_path, **{**RUN, "epochs": 1})
    for other in (Pictures(COUNT + 1), pictures):
        with pytest.raises(
            CheckpointError, match="belongs to a run with images 12 .*; use the old value"
        ):
            dino.pretrain(other, tmp_path, **RUN)
    before = load_state(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to a run with out_dim 16, this run has 32"):
        dino.pretrain(Pictures(), tmp_path, **{**RUN, "out_dim": 32})
    assert_same_bits(load_state(tmp_path), before)


def test_what_cannot_be_checked_is_said(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    line = "a data set of 12 images: only their number is checked when the run continues"
    once = {**RUN, "epochs": 1}
    dino.pretrain(pictures, tmp_path / "path", **once)
    assert line not in caplog.text
    dino.pretrain(Pictures(), tmp_path / "own", **once)
    assert [record.levelname for record in caplog.records if record.getMessage() == line] == [
        "WARNING"
    ]


def test_training_leaves_the_programs_logging_and_random_numbers_alone(
    weights: Path, tmp_path: Path
) -> None:
    root, own = logging.getLogger(), logging.getLogger("dino")
    before = root.handlers[:], root.level, own.handlers[:], own.level, own.propagate
    drawn = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    dino.pretrain(Pictures(), tmp_path, **{**RUN, "epochs": 1})
    dino.load(weights)
    assert (root.handlers, root.level, own.handlers, own.level, own.propagate) == before
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == drawn[1:]


def test_the_history_is_empty_where_nothing_was_logged(tmp_path: Path) -> None:
    once = {**RUN, "epochs": 1}
    assert len(dino.pretrain(Pictures(), tmp_path, **once).history) == 1
    (tmp_path / "log.txt").unlink()
    assert dino.pretrain(Pictures(), tmp_path, **once).history == []
    own = {"train_loss": 1.5, "epoch": 0}
    (tmp_path / "log.txt").write_text(json.dumps(own) + '\n{"note": 1}\n', encoding="utf-8")
    assert dino.pretrain(Pictures(), tmp_path, **once).history == [own]


def test_the_preset_counts_a_programs_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {name: value for name, value in RUN.items() if name != "out_dim"}
    with caplog.at_level(logging.INFO, logger="dino"):
        dino.pretrain(
            Pictures(), tmp_path, preset="auto", lr=0.001, data_limit=8, **{**settings, "epochs": 1}
        )
    args = load_state(tmp_path)["args"]
    assert (args["out_dim"], args["lr"], args["preset"]) == (1024, 0.001, None)
    assert "`out_dim` 1024 (auto: 8 images, up to 20000" in caplog.text
    assert "# auto: 8 images" in (tmp_path / "recipe.yaml").read_text()


def test_without_images_a_run_can_be_synthetic(tmp_path: Path) -> None:
    result = dino.pretrain(
        None, tmp_path, synthetic_data=True, data_limit=8, **{**RUN, "epochs": 1}
    )
    assert len(result.history) == 1


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch_size": 4}, r"unknown setting 'batch_size': did you mean batch_size_per_device\?"),
        ({"learning_rate": 1}, r"unknown setting 'learning_rate': did you mean lr\?"),
        ({"model": "vit_mini"}, r"did you mean arch\?"),
        ({"epoch": 4}, r"did you mean epochs\?"),
        ({"xyzzy": 4}, "unknown setting 'xyzzy': known are accumulate_steps, arch, "),
        ({"data_path": "x"}, r"pretrain\(\) takes no keyword 'data_path'"),
    ],
)
def test_an_unknown_keyword_is_a_type_error(
    settings: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(TypeError, match=text):
        dino.pretrain(Pictures(), tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "kind", "text"),
    [
        ({"lr": -1.0}, OptionError, r"`lr` must be >= 0 \(got -1.0\)"),
        ({"lr": "0.1"}, OptionError, "`lr` must be of type float"),
        ({"epochs": None}, OptionError, "`epochs` must be of type int"),
        ({"epochs": True}, OptionError, "`epochs` must be of type int"),
        ({"global_crops_scale": 0.4}, OptionError, "`global_crops_scale` must be 2 float values"),
        ({"optimizer": "adam"}, OptionError, "`optimizer` must be one of adamw, sgd, lars"),
        ({"arch": "vit_smal"}, OptionError, "`arch` vit_smal is unknown"),
        (
            {"batch_size_per_device": 13},
            DataError,
            "holds 12 images, less than one global batch of 13",
        ),
        (
            {"precision": "fp16"},
            DeviceError,
            "^`precision` fp16 needs `device` cuda; use bf16 or fp32 on the cpu$",
        ),
        ({"synthetic_data": True}, OptionError, "`synthetic_data` reads no images; pass data=None"),
        ({"eval_knn_every": 1}, OptionError, "`eval_knn_every` needs a folder with train and val"),
        ({"dry_run": True}, OptionError, "`dry_run` ends without a result"),
    ],
)
def test_wrong_values_are_refused(
    settings: dict[str, Any], kind: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=text):
        dino.pretrain(Pictures(), tmp_path, **{**RUN, **settings})


def test_numbers_of_other_libraries_are_numbers() -> None:
    settings = {
        "epochs": np.int64(1),
        "lr": np.float32(0.5),
        "global_crops_scale": [np.float64(0.5), 1],
    }
    config = build(TrainConfig, settings)
    assert (config.run.epochs, config.optim.lr, config.crops.global_crops_scale) == (
        1,
        0.5,
        (0.5, 1.0),
    )
    assert type(config.run.epochs) is int and type(config.optim.lr) is float


def test_bad_images_of_a_data_set_are_named_or_skipped(tmp_path: Path) -> None:
    def convert(pixels: np.ndarray) -> np.ndarray:
        if pixels[0, 0, 0] == bad:
            raise OSError("broken")
        return pixels

    bad = np.asarray(Pictures()[5])[0, 0, 0]
    images = Pictures(convert=convert)
    with pytest.raises(
        DataError,
        match="image 5 of the data set cannot be read: OSError: broken; use `on_bad_image` skip",
    ):
        dino.pretrain(images, tmp_path / "raise", **RUN)
    result = dino.pretrain(images, tmp_path / "skip", on_bad_image="skip", **{**RUN, "epochs": 1})
    assert result.history[0]["bad_images"] >= 1


def test_an_online_score_needs_a_folder(splits: Path, tmp_path: Path) -> None:
    more = {"eval_knn_every": 1, "own_view_images": 4, "epochs": 1}
    result = dino.pretrain(splits, tmp_path, **{**RUN, **more})
    assert 0 <= result.history[0]["knn_top1"] <= 100
    assert 0 <= result.history[0]["own_view"] <= 100
