"""Scores of the teacher during training: k-NN with labels, and own views of images without."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from dino.data.own_views import AREAS
from dino.errors import CheckpointError
from dino.stored import check_count, check_mapping
from dino.training.config import RunConfig

EASY = 90.0  # % of own views that an untrained network may find before the views become harder
# An own-view score runs 2 forward passes an image; training takes about 10 an image (2 of the
# teacher; 2 and the local crops, forward and backward, of the student). Scoring whenever this many
# times the scored images have been trained on thus costs about 2 % of the time.
TRAINED_PER_SCORED = 10
CLEAR = 2.0  # standard errors by which two scores must differ
JUDGES = {"knn": "knn_top1", "own_view": "own_view"}  # the score that `keep_best` looks at

Labelled = Callable[[nn.Module], Mapping[str, float]]
Unlabelled = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """What scores the teacher's backbone; both are called on every process.

    Attributes:
        knn: Backbone -> k-NN accuracies by name, every `eval_knn_every` epochs; None without.
        own_view: Backbone and hardness (an index in `AREAS`) -> `own_view` in % and `rankme`; None
            without.
    """

    knn: Labelled | None = None
    own_view: Unlabelled | None = None


NO_SCORERS = Scorers()


@dataclass(kw_only=True)
class ScoreState:
    """What a checkpoint keeps of the scores without labels.

    Attributes:
        level: How hard the views are.
        start: Scores before the first step; {} if unknown.
        latest: Scores of the last scored epoch; {} before.
        best: The best score so far by the name of `keep_best`.
        rose: Whether that is the score of this very checkpoint.
    """

    level: int = 0
    start: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    rose: bool = False


class Scores:
    """Decides what is scored when, and keeps what a resumed run needs of it."""

    def __init__(self, run: RunConfig, scorers: Scorers, *, images: int) -> None:
        """Store what scores the teacher of a run on `images` images, and when."""
        self.scorers, self.epochs, self.knn_every = scorers, run.epochs, run.eval_knn_every
        self.scored = min(run.own_view_images, images)
        self.own_view_every = max(1, -(-TRAINED_PER_SCORED * self.scored // images))
        self.kept = JUDGES.get(run.keep_best or "", "")
        self.state = ScoreState()

    def begin(self, backbone: nn.Module) -> Mapping[str, float]:
        """Score the network before its first step, on the easiest views that are hard for it."""
        score = self.scorers.own_view
        if score is None:
            return {}
        for level in range(len(AREAS)):
            values = dict(score(backbone, level))
            self.state = ScoreState(level=level, start=values)
            if values["own_view"] <= EASY:
                break
        return self.state.start

    def reads_images(self, epoch: int) -> bool:
        """Whether the scores after `epoch` read images, which takes a while and may fail."""
        every = self.knn_every
        return self.scorers.knn is not None and every > 0 and (epoch + 1) % every == 0

    def __call__(self, backbone: nn.Module, epoch: int) -> dict[str, float]:
        """Compute the scores that are due after `epoch`, counted from 0."""
        values: dict[str, float] = {}
        if self.scorers.knn is not None and self.reads_images(epoch):
            values |= self.scorers.knn(backbone)
        due = (epoch + 1) % self.own_view_every == 0 or epoch + 1 == self.epochs
        if self.scorers.own_view is not None and due:
            self.state.latest = dict(self.scorers.own_view(backbone, self.state.level))
            values |= self.state.latest
        self._note_best(values)
        return values

    def judge(self) -> str:
        """Say whether the features are better than before training, by the own-view score."""
        before, after = (
            values.get("own_view", math.nan) for values in (self.state.start, self.state.latest)
        )
        if math.isnan(before) or math.isnan(after):
            return "no verdict on its features, because own views were not scored from its start on"
        # Of two independent shares of images; whether both views of one are found depends.
        variances = [share * (100 - share) / self.scored for share in (before, after)]
        margin = CLEAR * math.sqrt(sum(variances))
        verdict = f"{'better' if after > before else 'worse'} by this score"
        if abs(after - before) <= margin:
            verdict = f"no clear difference (within {margin:.1f})"
        return f"own views found: {after:.1f} %, before training {before:.1f} %: {verdict}"

    def take_rise(self) -> bool:
        """Return whether the score is the best so far, once for each time that it rises."""
        rose, self.state.rose = self.state.rose, False
        return rose

    def _note_best(self, values: Mapping[str, float]) -> None:
        score = values.get(self.kept, math.nan)
        if score > self.state.best.get(self.kept, -math.inf):
            self.state.best, self.state.rose = {self.kept: score}, True

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load `state_dict`; {} from a checkpoint that has none."""
        self.state = ScoreState(**state)


def check_scores(stored: Any, path: object) -> None:
    """Check what `Scores.load_state_dict` gets from a checkpoint.

    Raises:
        CheckpointError: It is not what `Scores.state_dict` returns, or {}.
    """
    state = check_mapping(stored, "resume.scores", path)
    if not state:
        return
    names = list(asdict(ScoreState()))
    if set(state) != set(names):
        raise CheckpointError(f"{path}: its resume.scores must hold {', '.join(names)}")
    if not isinstance(state["rose"], bool):
        raise CheckpointError(f"{path}: its resume.scores.rose must be true or false")
    if check_count(state["level"], "resume.scores.level", path) >= len(AREAS):
        raise CheckpointError(f"{path}: its resume.scores.level must be below {len(AREAS)}")
    for name in ("start", "latest", "best"):
        for value in check_mapping(state[name], f"resume.scores.{name}", path).values():
            if not isinstance(value, float):
                raise CheckpointError(f"{path}: its resume.scores.{name} must hold numbers")
