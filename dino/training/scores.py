"""Scores of the teacher during training: k-NN with labels, and own views of images without."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from dino.data.own_views import AREAS
from dino.errors import CheckpointError
from dino.stored import check_count, check_mapping
from dino.training.config import TrainConfig

EASY = 90.0  # % of own views that an untrained network may find before the views become harder
# An own-view score runs 2 forward passes an image; training takes about 10 an image (2 of the
# teacher; 2 and the local crops, forward and backward, of the student). Scoring whenever this many
# times the scored images have been trained on thus costs about 2 % of the time.
TRAINED_PER_SCORED = 10

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
    """

    level: int = 0
    start: dict[str, float] = field(default_factory=dict)
    latest: dict[str, float] = field(default_factory=dict)


class Scores:
    """Decides what is scored when, and keeps what a resumed run needs of it."""

    def __init__(
        self, scorers: Scorers, *, knn_every: int, own_view_every: int, epochs: int
    ) -> None:
        """Store what scores the teacher, and the epochs between two scores of each kind."""
        self.scorers, self.epochs = scorers, epochs
        self.knn_every, self.own_view_every = knn_every, own_view_every
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
        return values

    def state_dict(self) -> dict[str, Any]:
        """The state as plain values."""
        return asdict(self.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load `state_dict`; {} from a checkpoint that has none."""
        self.state = ScoreState(**state)


def build_scores(config: TrainConfig, scorers: Scorers, *, images: int) -> Scores:
    """Build the scores of a run on `images` images."""
    run = config.run
    scored = min(run.own_view_images, images)
    return Scores(
        scorers,
        knn_every=run.eval_knn_every,
        own_view_every=max(1, -(-TRAINED_PER_SCORED * scored // images)),
        epochs=run.epochs,
    )


def check_scores(stored: Any, path: object) -> None:
    """Check what `Scores.load_state_dict` gets from a checkpoint.

    Raises:
        CheckpointError: It is not what `Scores.state_dict` returns, or {}.
    """
    state = check_mapping(stored, "resume.scores", path)
    if not state:
        return
    if set(state) != set(asdict(ScoreState())):
        raise CheckpointError(f"{path}: its resume.scores must hold level, start and latest")
    if check_count(state["level"], "resume.scores.level", path) >= len(AREAS):
        raise CheckpointError(f"{path}: its resume.scores.level must be below {len(AREAS)}")
    for name in ("start", "latest"):
        for value in check_mapping(state[name], f"resume.scores.{name}", path).values():
            if not isinstance(value, float):
                raise CheckpointError(f"{path}: its resume.scores.{name} must hold numbers")
