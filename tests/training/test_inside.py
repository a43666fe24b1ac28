"""A checkpoint whose content is damaged is one line, before anything of it reaches the run."""

import argparse
import copy
import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from dino import checkpoint
from dino.config import as_dict
from dino.errors import CheckpointError
from dino.training.config import TrainConfig
from dino.training.inside import Held, check_inside
from dino.training.optim import build_optimizer
from dino.training.resume import ADDED, Identity, find_position, select_published
from dino.training.resume import IDENTITY as IDENTITY_SETTINGS

ARGS = {
    "arch": "vit_mini",
    "optimizer": "adamw",
    **dict.fromkeys(ADDED),
    "global_crops_scale": [0.4, 1.0],
    "lr": 0.1,
}
NOW = Identity(iteration=25, iterations=10, world=1, global_batch=8, images=80, fingerprint="abc")
PROGRAM = {"centre": torch.zeros(1, 6), "non_finite": torch.zeros(2), "meters": torch.zeros(7)}
SCALER = {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 3}


def build_network():
    return nn.ModuleDict({"body": nn.Linear(4, 3), "last_layer": nn.Linear(3, 6, bias=False)})


def build_held(**changes):
    student = build_network()
    optimizer = build_optimizer("adamw", student)
    networks = {"student": student, "teacher": build_network()}
    held = {"optimizer": optimizer, "program": PROGRAM, "scaler": {}, "args": ARGS}
    return Held(networks=networks, **{**held, **changes})


def build_state(held):
    student = {
        f"module.{name}": tensor.clone()
        for name, tensor in held.networks["student"].state_dict().items()
    }
    program = {name: value.clone() for name, value in PROGRAM.items() if name != "centre"}
    return {
        "student": student,
        "teacher": copy.deepcopy(dict(held.networks["teacher"].state_dict())),
        "optimizer": copy.deepcopy(held.optimizer.state_dict()),
        "epoch": 2,
        "args": copy.deepcopy(ARGS),
        "dino_loss": {"center": torch.zeros(1, 6)},
        "resume": {
            "identity": dataclasses.asdict(NOW),
            "program": program,
            "bad_images": 0,
            "unfinished": False,
            "mode": None,
            "scores": {
                "level": 1,
                "start": {"own_view": 20.0},
                "latest": {},
                "best": {},
                "rose": False,
            },
        },
        "format": 2,
    }


HELD = build_held()


def change(state, path, value):
    """Replace the value at a path; None removes it."""
    *way, last = path
    for key in way:
        state = state[key] if isinstance(state, dict | list) else {}
    if not isinstance(state, dict | list):
        raise KeyError(last)
    if value is None:
        del state[last]
    else:
        state[last] = value
    return state


def test_a_whole_checkpoint_passes():
    check_inside(build_state(HELD), HELD, "FILE")


MOMENT = ("optimizer", "state", 0, "exp_avg")  # (3, 4)
WEIGHT = ("student", "module.body.weight")
IDENTITY = ("resume", "identity")
SPARSE = torch.eye(3, 4).to_sparse()
DAMAGED = {
    "no teacher": (("teacher",), None, "it lacks teacher"),
    "no center": (("dino_loss", "center"), None, r"dino_loss\.center must be a tensor"),
    "a malformed dino_loss": (("dino_loss",), [1, 2], r"dino_loss must be a dictionary .got list"),
    "a center of another shape": (
        ("dino_loss", "center"),
        torch.zeros(1, 7),
        r"dino_loss\.center must be \(1, 6\) .got \(1, 7\)",
    ),
    "a center of NaN": (("dino_loss", "center"), torch.full((1, 6), torch.nan), "holds NaN"),
    "an epoch in words": (("epoch",), "two", r"epoch must be a whole number from 0 .got str"),
    "a negative epoch": (("epoch",), -1, "epoch must be a whole number from 0"),
    "an epoch that is a truth value": (("epoch",), True, "epoch must be a whole number"),
    "an epoch other than the iteration's": (("epoch",), 3, "iteration 25 of 10 an epoch is not"),
    "a far iteration": ((*IDENTITY, "iteration"), 10**9, "iteration 1000000000 of 10 an epoch"),
    "an iteration in words": ((*IDENTITY, "iteration"), "25", r"iteration must be a whole number"),
    "epochs of no iterations": ((*IDENTITY, "iterations"), 0, "of 0 an epoch"),
    "no identity": (IDENTITY, None, r"resume\.identity must be a dictionary .got NoneType"),
    "half an identity": ((*IDENTITY, "world"), None, r"resume\.identity must hold iteration, "),
    "more identity": ((*IDENTITY, "other"), 1, r"resume\.identity must hold iteration, "),
    "a fingerprint that is a number": ((*IDENTITY, "fingerprint"), 3, "fingerprint must be a text"),
    "a resume that is a list": (("resume",), [], "resume must be a dictionary"),
    "args that are a list": (("args",), [("arch", "vit_mini")], "args must be settings by name"),
    "no args": (("args",), None, "args must be settings by name"),
    "a tensor in args": (("args", "lr"), torch.zeros(2), "lr in its args must be a plain value"),
    "a mode that is a number": (("resume", "mode"), 3, "mode must be a name"),
    "bad images in words": (("resume", "bad_images"), "few", "bad_images must be a whole number"),
    "unfinished as a number": (("resume", "unfinished"), 2, "unfinished must be true or false"),
    "a program that is a list": (("resume", "program"), [], r"resume\.program must be a dict"),
    "meters of another shape": (
        ("resume", "program", "meters"),
        torch.zeros(3),
        r"resume\.program\.meters must be \(7,\) .got \(3,\)",
    ),
    "a student that is a list": (("student",), [1], "student must be a dictionary"),
    "a missing tensor": (WEIGHT, None, r"student lacks 1 of 3 tensors: body\.weight"),
    "a weight that is a number": (WEIGHT, 1.0, r"body\.weight must be a tensor .got float"),
    "a weight of another shape": (WEIGHT, torch.zeros(4, 3), r"must be \(3, 4\) .got \(4, 3\)"),
    "a complex weight": (WEIGHT, torch.zeros(3, 4) + 0j, r"floating-point numbers .got complex"),
    "an integer weight": (WEIGHT, torch.zeros(3, 4).int(), r"floating-point numbers .got integ"),
    "a NaN": (WEIGHT, torch.full((3, 4), torch.nan), r"student\.body\.weight holds NaN"),
    "infinite as float32": (WEIGHT, torch.full((3, 4), 1e300, dtype=torch.float64), "infinite"),
    "a sparse weight": (WEIGHT, SPARSE, r"must be a dense tensor .got torch.sparse_coo"),
    "no optimizer state": (("optimizer", "state"), {}, "lacks moments of 3 parameters"),
    "no optimizer groups": (("optimizer", "param_groups"), None, "optimizer lacks param_groups"),
    "groups of another size": (
        ("optimizer", "param_groups", 0, "params"),
        [0],
        r"groups of \[2, 1\] parameters",
    ),
    "groups that are a number": (("optimizer", "param_groups"), 3, "must have groups"),
    "a group that is a number": (("optimizer", "param_groups", 0), 3, "must have groups"),
    "a parameter twice": (("optimizer", "param_groups", 0, "params"), [2, 2], "number each"),
    "an optimizer that is a text": (("optimizer",), "adamw", "optimizer must be a dictionary"),
    "an unknown parameter": (("optimizer", "state", 9), {}, "of 1 unknown parameters"),
    "a missing moment": (MOMENT, None, "lacks moments of 1 parameters"),
    "a moment of one number": (MOMENT, torch.zeros(1), r"0\.exp_avg must be \(3, 4\) .got \(1,\)"),
    "a sparse moment": (MOMENT, SPARSE, r"0\.exp_avg must be a dense tensor"),
    "a moment without numbers": (MOMENT, torch.zeros(3, 4, device="meta"), "got meta"),
    "an infinite moment": (MOMENT, torch.full((3, 4), torch.inf), "infinite"),
    "a step in words": (("optimizer", "state", 0, "step"), "one", "step must be a finite number"),
    "a negative step": (("optimizer", "state", 0, "step"), -1.0, "step must be at least 0"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_damage_is_one_line_that_names_the_file_and_the_place(name):
    path, value, reason = DAMAGED[name]
    state = build_state(HELD)
    change(state, path, value)
    with pytest.raises(CheckpointError, match=reason) as caught:
        check_inside(state, HELD, "FILE")
    assert "FILE" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", SCALER)
@pytest.mark.parametrize("value", ["words", torch.nan, -1.0])
def test_a_loss_scale_is_a_positive_number(name, value):
    held = build_held(scaler=SCALER)
    state = {**build_state(held), "fp16_scaler": {**SCALER, name: value}}
    if (name, value) == ("_growth_tracker", -1.0):
        return check_inside(state, held, "FILE")
    with pytest.raises(CheckpointError, match=rf"FILE: its fp16_scaler\.{name} must be"):
        check_inside(state, held, "FILE")


def test_what_people_publish_holds_no_paths_of_the_machine(tmp_path):
    """Every setting that may hold a text, so that a new path among them is noticed."""
    config = TrainConfig()
    groups = [getattr(config, field.name) for field in dataclasses.fields(config)]
    texts = {
        field.name: "/home/somebody/place"
        for group in groups
        for field in dataclasses.fields(group)
        if "str" in str(field.type) and field.name not in IDENTITY_SETTINGS
    }
    state = {
        "teacher": {"backbone.norm.weight": torch.zeros(2), "head.weight": torch.zeros(2)},
        "args": {**as_dict(config), **texts, "data_path": "mine", "output_dir": "."},
        "epoch": 3,
        "normalisation": {"mean": [0.5], "std": [0.5]},
        "resume": {},
    }
    checkpoint.save_file(tmp_path / "t.pth", select_published(state))
    assert b"somebody" not in (tmp_path / "t.pth").read_bytes()
    kept = checkpoint.load_file(tmp_path / "t.pth")
    assert kept.keys() == {"teacher", "args", "epoch", "normalisation"}
    assert kept["teacher"].keys() == {"backbone.norm.weight"}
    assert kept["args"].items() >= {"lr": 0.0005, "out_dim": 65536, "epochs": 100}.items()
    assert not {"data_path", "output_dir"} & kept["args"].keys()


def test_another_network_is_left_to_its_better_reason():
    state = build_state(HELD)
    state["args"]["arch"] = "vit_small"
    state["student"] = {"module.other": torch.zeros(2)}
    check_inside(state, HELD, "FILE")


def test_the_originals_file_may_lack_moments_of_frozen_layers():
    state = build_state(HELD)
    del state["resume"], state["optimizer"]["state"][1]
    state["args"] = argparse.Namespace(arch="vit_mini")
    check_inside(state, HELD, "FILE")


VALUES = st.sampled_from(
    [
        *("words", "", None, True, -1, 10**30, 0.5, float("nan"), [], {}, (1, "a"), {1: 2}),
        *(torch.zeros(()), torch.zeros(3), torch.zeros(3, 4).bool(), torch.zeros(1).expand(3, 4)),
        *(torch.full((3, 4), torch.inf), torch.zeros(3, 4, dtype=torch.complex64), SPARSE),
        *([torch.zeros(2)], {"a": {"b": torch.zeros(1, device="meta")}}),
    ]
)


def list_places(state, way=()):
    yield way
    items = state.items() if isinstance(state, dict) else ()
    items = enumerate(state) if isinstance(state, list) else items
    for key, value in items:
        yield from list_places(value, (*way, key))


PLACES = [way for way in list_places(build_state(HELD)) if way]


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
@pytest.mark.filterwarnings("ignore:Sparse")
def test_any_change_of_the_structure_is_refused_or_trains(changes):
    """What passes loads, and one update with it has finite results."""
    held = build_held()
    state = build_state(held)
    for way, value in changes:
        try:
            change(state, way, copy.deepcopy(value))
        except (KeyError, IndexError, TypeError):
            continue  # the place went with an earlier change
    try:
        check_inside(state, held, "FILE")
        find_position(state, ARGS, NOW)
    except CheckpointError as error:
        assert "\n" not in str(error)
        return
    if isinstance(state["args"], dict) and state["args"].get("arch") == ARGS["arch"]:
        load_and_update(state, held)


def load_and_update(state, held):
    held.optimizer.load_state_dict(state["optimizer"])
    for parameter in held.networks["student"].parameters():
        moments = held.optimizer.state[parameter]
        assert all(
            moments[name].shape == parameter.shape and moments[name].is_contiguous()
            for name in ("exp_avg", "exp_avg_sq")
        )
        assert moments["exp_avg"].untyped_storage().nbytes() == parameter.nbytes
