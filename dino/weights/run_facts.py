"""What a checkpoint and its run's log.txt say about the training, as rows of text to publish.

Only numbers and single words of known settings are taken, so that no path, user or host is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino import checkpoint
from dino.models.config import WeightsConfig
from dino.runtime.log_file import read_history
from dino.runtime.metrics import LOG_FILE
from dino.weights.network import Network
from dino.weights.read import is_name

WORD = re.compile(r"[A-Za-z0-9_+-]{1,30}")
# A row is left out if a checkpoint lacks one of its values.
ROWS = (
    ("images", "{images:,}"),
    ("epochs", "{epoch:,} of {epochs:,}"),
    ("updates", "{iteration:,}"),
    ("images per update", "{global_batch:,}"),
    ("processes", "{world}"),
    ("global crops", "2 of {global_crops_size} pixels, {global_crops_scale} of the area"),
    (
        "local crops",
        "{local_crops_number} of {local_crops_size} pixels, {local_crops_scale} of the area",
    ),
    ("prototypes", "{out_dim:,}"),
    (
        "teacher's temperature",
        "{teacher_temp:g} after {warmup_teacher_temp_epochs} epochs from {warmup_teacher_temp:g}",
    ),
    ("teacher's momentum", "{momentum_teacher:g} to 1"),
    ("optimizer", "{optimizer}"),
    ("learning rate", "{lr:g} for 256 images per update, {warmup_epochs} epochs of warm-up"),
    ("weight decay", "{weight_decay:g} to {weight_decay_end:g}"),
    ("stochastic depth", "{drop_path_rate:g}"),
    ("number format", "{precision}"),
    ("device", "{device}"),
    ("loss, mean of the last epoch", "{train_loss:.4f}"),
)
SCORES = {
    "knn_top1": ("k-NN top-1, %", "{:.1f}"),
    "knn_top5": ("k-NN top-5, %", "{:.1f}"),
    "own_view": ("own views found, %", "{:.1f}"),
    "rankme": ("RankMe", "{:.2f}"),
}


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of a training run; all of it is empty for weights of other origin.

    Attributes:
        network: `teacher` or `student`.
        settings: Rows of a name and a value.
        scores: Rows of a name and the teacher's score before training, last, and the epoch of that;
            an unknown one is empty.
    """

    network: str = ""
    settings: Sequence[tuple[str, str]] = ()
    scores: Sequence[tuple[str, ...]] = ()


def read_facts(state: Mapping[str, Any], weights: WeightsConfig, network: Network) -> RunFacts:
    """Read the facts of a run from its checkpoint, and from the log.txt beside it.

    Args:
        state: The content of the file.
        weights: The file's path, and which of its networks is used.
        network: That network, which may have been adapted to other images.
    """
    epoch, args = state.get("epoch"), checkpoint.read_args(state)
    if not isinstance(epoch, int) or "out_dim" not in args:
        return RunFacts()
    history = read_log(weights.pretrained_weights or "", epoch)
    resume = _mapping(state.get("resume"))
    values = {**args, **_mapping(resume.get("identity")), "epoch": epoch}
    if history and history[-1]["epoch"] == epoch - 1:
        values["train_loss"] = history[-1]["train_loss"]
    return RunFacts(
        network="student" if weights.checkpoint_key == "student" else "teacher",
        settings=list_settings(values) + list_changes(args, network),
        scores=list_scores(_mapping(resume.get("scores")), history),
    )


def read_log(word: str, epochs: int) -> list[dict[str, Any]]:
    """Read the lines of the first `epochs` epochs of the run that wrote a file; [] without any."""
    if is_name(word):
        return []
    folder = Path(word) if Path(word).is_dir() else Path(word).parent
    lines = read_history(folder / LOG_FILE)
    # A linear probe's log has no weight decay.
    return [line for line in lines if "train_wd" in line and line["epoch"] < epochs]


def list_settings(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Fill in the rows whose values are known."""
    known = {name: value for name, value in map(_tidy, values.items()) if value is not None}
    rows = []
    for name, template in ROWS:
        try:
            rows.append((name, template.format_map(known)))
        except (KeyError, ValueError):  # unknown, or of another type in a stranger's file
            continue
    return rows


def list_changes(args: Mapping[str, Any], network: Network) -> list[tuple[str, str]]:
    """Name what a conversion changed, because the scores are of the network before."""
    now = {
        "channels": ("in_chans", network.in_chans),
        "patch size": ("patch_size", network.patch_size),
        "image size": ("global_crops_size", network.image_size[0]),
    }
    changed = [name for name, (key, value) in now.items() if args.get(key, value) != value]
    return [("changed after all this", ", ".join(changed))] if changed else []


def list_scores(
    kept: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> list[tuple[str, ...]]:
    """List each score before training, and its last value with its epoch."""
    start, rows = _mapping(kept.get("start")), []
    for key, (name, template) in SCORES.items():
        scored = [line for line in history if _is_number(line.get(key))]
        last = scored[-1] if scored else {**_mapping(kept.get("latest")), "epoch": None}
        values = [
            template.format(value) if _is_number(value) else ""
            for value in (start.get(key), last.get(key))
        ]
        if any(values):
            rows.append((name, *values, "" if last["epoch"] is None else str(last["epoch"] + 1)))
    return rows


def _tidy(item: tuple[str, Any]) -> tuple[str, Any]:
    """Return a name and a value to print: a number, a word, or a range as text; else None."""
    name, value = item
    if isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value)):
        return name, f"{value[0]:g} to {value[1]:g}"
    is_word = isinstance(value, str) and WORD.fullmatch(value)
    return name, value if is_word or _is_number(value) else None


def _is_number(value: Any) -> bool:
    return type(value) in {int, float} and math.isfinite(value)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
