"""Where a run continues, and which checkpoint is refused."""

import argparse
import dataclasses
import logging

import pytest

from dino.cli.options import parse
from dino.config import as_dict
from dino.errors import CheckpointError
from dino.training.config import TrainConfig
from dino.training.resume import ADDED, IDENTITY, Identity, find_position

NOW = Identity(iteration=0, iterations=10, world=1, global_batch=32, images=320, fingerprint="abc")


def args_of(*words):
    return as_dict(parse(TrainConfig, [str(word) for word in words]))


def state_at(iteration, *words, **changes):
    identity = dataclasses.replace(NOW, iteration=iteration, **changes)
    return {
        "epoch": iteration // identity.iterations,
        "args": args_of(*words),
        "resume": {"identity": dataclasses.asdict(identity)},
    }


@pytest.fixture(autouse=True)
def info(caplog):
    caplog.set_level(logging.INFO)


@pytest.mark.parametrize("iteration", [0, 1, 9, 10, 37])
def test_the_same_command_continues_where_it_stopped_and_says_nothing(iteration, caplog):
    assert find_position(state_at(iteration), args_of(), NOW) == iteration
    assert caplog.records == []


OTHERS = {
    "arch": "vit_tiny",
    "patch_size": 8,
    "in_chans": 1,
    "global_crops_size": 96,
    "out_dim": 77,
    "norm_last_layer": False,
    "use_bn_in_head": True,
    "optimizer": "sgd",
}


def test_what_makes_another_run_is_frozen():
    assert set(IDENTITY) == {*OTHERS, *ADDED}


@pytest.mark.parametrize(("name", "value"), OTHERS.items())
def test_another_network_or_optimizer_is_refused_with_old_and_new_value(name, value):
    with pytest.raises(
        CheckpointError, match=rf"with {name} {args_of()[name]}, this run has {value}"
    ) as caught:
        find_position(state_at(5), args_of(f"--{name}", value), NOW)
    assert caught.value.exit_code == 2


def test_another_range_of_pixels_is_another_run():
    ranged, older = state_at(5, "--pixel_range", "0,4095"), state_at(5)
    del older["args"]["pixel_range"]  # a file from before the setting has no range
    assert find_position(ranged, args_of("--pixel_range", "0", "4095"), NOW) == 5
    assert find_position(older, args_of(), NOW) == 5
    for state, words, text in (
        (ranged, (), r"with pixel_range \[0.0, 4095.0\], this run has None"),
        (ranged, ("--pixel_range", "0,255"), r"this run has \[0.0, 255.0\]"),
        (older, ("--pixel_range", "0,255"), "with pixel_range None"),
    ):
        with pytest.raises(CheckpointError, match=text):
            find_position(state, args_of(*words), NOW)


@pytest.mark.parametrize("changes", [{"images": 321}, {"fingerprint": "xyz"}])
def test_other_images_are_refused_with_old_and_new(changes):
    with pytest.raises(CheckpointError, match=r"with images \d+ \(\w+\), this run has 320 \(abc\)"):
        find_position(state_at(5, **changes), args_of(), NOW)


@pytest.mark.parametrize(
    "words",
    [
        ("--epochs", 7),
        ("--num_workers", 1),
        ("--save_every_steps", 3),
        ("--saveckp_freq", 5),
        ("--lr", 0.1),
    ],
)
def test_allowed_changes_are_printed_with_old_and_new(words, caplog):
    name = words[0].removeprefix("--")
    assert find_position(state_at(5), args_of(*words), NOW) == 5
    assert f"{name} {args_of()[name]} -> {words[1]}" in caplog.text


@pytest.mark.parametrize(
    "words", [("--output_dir", "b"), ("--data_path", "c"), ("--dist_url", "tcp://localhost:1")]
)
def test_another_place_is_no_change(words, caplog):
    assert find_position(state_at(5), args_of(*words), NOW) == 5
    assert caplog.records == []


TWICE = {"global_batch": 64, "iterations": 5}


@pytest.mark.parametrize("changes", [{"world": 2, **TWICE}, TWICE])
def test_another_batch_is_taken_between_epochs_in_the_new_counting(changes, caplog):
    assert find_position(state_at(15, **changes), args_of(), NOW) == 30
    assert "not bit-identical" in caplog.text
    assert f"global batch {changes['global_batch']} -> 32" in caplog.text


@pytest.mark.parametrize("changes", [{"world": 2, **TWICE}, TWICE])
def test_another_batch_inside_an_epoch_is_refused(changes):
    with pytest.raises(CheckpointError, match="is 2 iterations into epoch") as caught:
        find_position(state_at(12, **changes), args_of(), NOW)
    assert "for a global batch of 64" in caught.value.remedy


def test_other_processes_with_the_same_global_batch_continue_inside_an_epoch(caplog):
    assert find_position(state_at(12, world=2), args_of(), NOW) == 12
    assert "processes 2 -> 1 at a global batch of 32: continuing at iteration 12" in caplog.text


def test_the_originals_checkpoint_continues_at_its_epoch(caplog):
    args = argparse.Namespace(
        arch="vit_small", patch_size=16, out_dim=65536, optimizer="adamw", epochs=800
    )
    assert find_position({"epoch": 3, "args": args}, args_of(), NOW) == 30
    assert "the original's" in caplog.text and "epochs 800 -> 100" in caplog.text


def test_the_originals_checkpoint_of_another_network_is_refused():
    with pytest.raises(CheckpointError, match="with arch vit_base, this run has vit_small"):
        find_position({"epoch": 3, "args": argparse.Namespace(arch="vit_base")}, args_of(), NOW)


def test_the_originals_ranges_of_areas_are_no_change(caplog):
    """The original stores tuples where the flag was not given."""
    args = argparse.Namespace(
        arch="vit_small", global_crops_scale=(0.4, 1.0), local_crops_scale=[0.05, 0.4]
    )
    find_position({"epoch": 3, "args": args}, args_of(), NOW)
    assert "crops_scale" not in caplog.text


def test_options_that_the_checkpoint_does_not_know_are_no_change(caplog):
    state = state_at(5)
    del state["args"]["compile"]
    assert find_position(state, args_of("--compile"), NOW) == 5
    assert caplog.records == []


@pytest.mark.parametrize(
    ("before", "words", "lines"), [(False, (), 0), (None, (), 0), (False, ("--compile",), 1)]
)
def test_a_switch_that_was_off_and_is_now_left_open_is_no_change(before, words, lines, caplog):
    state = state_at(5)
    state["args"]["compile"] = before
    find_position(state, args_of(*words), NOW)
    assert len(caplog.records) == lines
