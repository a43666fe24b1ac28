"""Check the content of a checkpoint before any of it reaches the run's networks and optimizer."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor, nn

from dino import checkpoint
from dino.checkpoint import read_args
from dino.errors import CheckpointError
from dino.stored import (
    check_count,
    check_mapping,
    check_number,
    check_tensor,
    check_tensors,
    walk_tensors,
)
from dino.stored_optimizer import check_optimizer
from dino.training.optim import MaskedOptimizer
from dino.training.resume import Identity, is_other_run
from dino.training.scores import check_scores

NEEDED = ("student", "teacher", "optimizer", "epoch", "dino_loss")


@dataclass(frozen=True, kw_only=True)
class Held:
    """What a checkpoint is loaded into.

    Attributes:
        networks: Student and teacher by name.
        optimizer: The student's.
        program: `DinoProgram.state_dict()`, with the center (1, K) under `centre`.
        scaler: State of the loss scale; empty without one.
        args: The settings of this run.
    """

    networks: Mapping[str, nn.Module]
    optimizer: MaskedOptimizer
    program: Mapping[str, Tensor]
    scaler: Mapping[str, Any]
    args: Mapping[str, Any]


def check_inside(state: Mapping[str, Any], held: Held, path: object) -> None:
    """Check everything that `Trainer` reads of a checkpoint.

    Tensors are compared with the networks only if the settings are those of this run. Those of
    another run are refused afterwards (`find_position`), with a better reason.

    Raises:
        CheckpointError: Something is missing, has another type or shape, or is not finite.
    """
    checkpoint.check_complete(
        state,
        NEEDED,
        f"{path} is not a training checkpoint",
        remedy="pass a weights file as `init_from`",
    )
    epoch = check_count(state["epoch"], "epoch", path)
    own = "resume" in state
    _check_args(state, path, needed=own)
    if own:
        _check_resume(state["resume"], epoch, path)
    if is_other_run(state, held.args):
        return
    for name, network in held.networks.items():
        check_tensors(without_module(state[name], name, path), network.state_dict(), name, path)
    moments = check_optimizer(state["optimizer"], held.optimizer, held.optimizer.state_names, path)
    needed = {*held.optimizer.state_names, "step"}
    lacking = sum(not needed <= entry.keys() for entry in moments)
    if own and lacking:
        raise CheckpointError(f"{path}: its optimizer lacks moments of {lacking} parameters")
    center = check_mapping(state["dino_loss"], "dino_loss", path).get("center")
    check_tensor("dino_loss.center", center, held.program["centre"], path)
    for name, value in (state["resume"].get("program", {}) if own else {}).items():
        if name in held.program:
            # Meters are NaN where a device does not know the norm of the gradients.
            check_tensor(f"resume.program.{name}", value, held.program[name], path, finite=False)
    _check_scaler(state.get("fp16_scaler"), held.scaler, path)


def without_module(weights: Any, name: str, path: object) -> dict[str, Tensor]:
    """Return a network's tensors without the leading `module.` of the student.

    Raises:
        CheckpointError: They are not a dictionary.
    """
    named = check_mapping(weights, name, path).items()
    return {str(key).removeprefix("module."): value for key, value in named}


def _check_args(state: Mapping[str, Any], path: object, *, needed: bool) -> None:
    args = state.get("args")
    if not isinstance(args, Mapping | argparse.Namespace) and (needed or args is not None):
        raise CheckpointError(
            f"{path}: its args must be settings by name (got {type(args).__name__})"
        )
    for name, _ in walk_tensors(read_args(state), path):
        raise CheckpointError(f"{path}: {name} in its args must be a plain value (got a tensor)")


def _check_resume(resume: Any, epoch: int, path: object) -> None:
    more = check_mapping(resume, "resume", path)
    identity = check_mapping(more.get("identity"), "resume.identity", path)
    names = [field.name for field in fields(Identity)]
    if set(identity) != set(names):
        raise CheckpointError(f"{path}: its resume.identity must hold {', '.join(names)}")
    for name in names:
        if name == "fingerprint":
            if not isinstance(identity[name], str):
                raise CheckpointError(f"{path}: its resume.identity.fingerprint must be a text")
        else:
            check_count(identity[name], f"resume.identity.{name}", path)
    iteration, iterations = identity["iteration"], identity["iterations"]
    if not iterations or iteration // iterations != epoch:
        raise CheckpointError(
            f"{path}: its iteration {iteration} of {iterations} an epoch is not in epoch {epoch}"
        )
    check_mapping(more.get("program", {}), "resume.program", path)
    check_count(more.get("bad_images", 0), "resume.bad_images", path)
    if not isinstance(more.get("unfinished", False), bool):
        raise CheckpointError(f"{path}: its resume.unfinished must be true or false")
    check_scores(more.get("scores", {}), path)
    if not isinstance(more.get("mode"), str | None):
        raise CheckpointError(f"{path}: its resume.mode must be a name")


def _check_scaler(stored: Any, scaler: Mapping[str, Any], path: object) -> None:
    values = check_mapping(stored or {}, "fp16_scaler", path)
    for name in scaler if values else ():
        number = check_number(values.get(name), f"fp16_scaler.{name}", path)
        if number <= 0 and name != "_growth_tracker":
            raise CheckpointError(f"{path}: its fp16_scaler.{name} must be positive")
