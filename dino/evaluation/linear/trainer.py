"""The epochs of a linear layer: logs, validation, checkpoints and continuation."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from dino import checkpoint, stored
from dino.config import as_dict
from dino.errors import NonFiniteError
from dino.evaluation.config import LinearConfig
from dino.evaluation.features import Features
from dino.evaluation.linear.batches import TrainBatches
from dino.evaluation.linear.head import (
    LinearHead,
    LinearInputs,
    LinearProgram,
    LinearScore,
    MomentumSGD,
    Samples,
    score_head,
)
from dino.evaluation.linear.task import BEST, CHECKPOINT, LinearTask, load_head
from dino.runtime.context import Run
from dino.runtime.folder_lock import check_held
from dino.runtime.metrics import MetricLog
from dino.runtime.progress import Progress
from dino.stored import check_count, check_number

logger = logging.getLogger(__name__)

BATCH_OF_LR = 256  # global batch that `lr` refers to (linear scaling rule of the original)
LOG_EVERY = 20  # steps between two progress lines, as in the original


@dataclass
class ProbeState:
    """State of a layer: head and momentum on the device, completed epochs, best top-1 in %."""

    head: LinearHead
    optimizer: MomentumSGD
    epoch: int = 0
    best: float = 0.0


def restore_state(config: LinearConfig, task: LinearTask, run: Run) -> ProbeState:
    """Create a new layer, or restore it from the output folder's checkpoint.

    Raises:
        DinoError: The checkpoint is damaged or of another run.
    """
    run.device.seed(config.run.seed)
    head, path = LinearHead(task.width, task.classes), Path(config.run.output_dir) / CHECKPOINT
    state = load_head(head, path, task.identity) if path.exists() else None
    head.to(run.device.torch_device)
    layer = ProbeState(head, MomentumSGD(head.parameters()))
    if state is not None:
        checkpoint.check_complete(
            state,
            ("epoch", "optimizer", "best_acc"),
            f"{path} is not a checkpoint of a run",
            remedy="move it away, or score it with `evaluate`",
        )
        layer.optimizer.load_state_dict(state["optimizer"])
        layer.epoch = check_count(state["epoch"], "epoch", path)
        layer.best = check_number(state["best_acc"], "best_acc", path)
        logger.info("continuing at epoch %d, best accuracy so far %.2f%%", layer.epoch, layer.best)
    run.processes.check_position(path.parent, "epoch", layer.epoch)
    return layer


class LinearTrainer:
    """The remaining epochs of a layer."""

    def __init__(
        self,
        config: LinearConfig,
        run: Run,
        layer: ProbeState,
        *,
        task: LinearTask,
        train_batches: TrainBatches,
        test: Features,
    ) -> None:
        """Bind everything. Nothing is read yet.

        Args:
            config: Settings of the run.
            run: Device and processes.
            layer: The initial state, trained in place.
            task: The task of the layer.
            train_batches: The training data.
            test: Features of all test images, in host memory. They are the same in every epoch.
        """
        self.config, self.run, self.layer, self.task, self.test = config, run, layer, task, test
        self.batches = train_batches.batches
        self.program = LinearProgram(layer.head, train_batches.extract, run.processes)
        self.step = run.device.compile_train(self.program, layer.optimizer, 1)
        self.infer = run.device.compile_eval(layer.head)
        start, total = (epoch * len(self.batches) for epoch in (layer.epoch, config.run.epochs))
        self.progress = Progress(
            total, "linear layer", start=start, shown=run.processes.is_rank_zero
        )

    def run_epochs(self) -> LinearScore:
        """Run all remaining epochs. Returns the last validation's score.

        Raises:
            NonFiniteError: The loss is no longer finite.
            DinoError: An image cannot be read, or a file cannot be written.
        """
        epochs, start = self.config.run.epochs, self.layer.epoch
        folder = Path(self.config.run.output_dir)
        text = "learning rate %g for a global batch of %d, cosine to 0"
        logger.info(text, self._peak(), self._global_batch())
        is_rank_zero = self.run.processes.is_rank_zero
        log_to = self.config.run.log_to
        log = (
            MetricLog(folder, epoch=start, iteration=start, log_to=log_to) if is_rank_zero else None
        )
        completed = False
        try:
            score = self._score() if start >= epochs else None
            for epoch in range(start, epochs):
                best = self.layer.best
                values = {"train_lr": self._rate(epoch), "train_loss": self._train_epoch(epoch)}
                if self._is_validated(epoch):
                    score = self._validate(epoch)
                    values |= {f"test_{name}": value for name, value in score.named().items()}
                if log is not None:
                    log.write_scalars(values, epoch + 1)
                    log.write_epoch({**values, "epoch": epoch})
                    self._save(epoch + 1, is_best=self.layer.best > best)
            completed = True
        finally:
            self.progress.close()
            if log is not None:
                log.close(completed=completed)
        assert score is not None
        logger.info("Training of the supervised linear classifier on frozen features completed.")
        logger.info("Top-1 test accuracy: %.1f", self.layer.best)
        return score

    def _train_epoch(self, epoch: int) -> float:
        """Train one epoch. Returns the mean loss over all processes."""
        count, rate = len(self.batches), self._rate(epoch)
        # Epochs of cached features are short, so they log once.
        every = count if self.config.linear.cache_features else LOG_EVERY
        self.program.loss.zero_()
        for done, batch in enumerate(self.batches.read(epoch), start=1):
            self.step(
                Samples(*batch[:2]),
                LinearInputs(torch.tensor(rate, dtype=torch.float32, device="cpu")),
            )
            if done % every == 0 or done == count:
                loss = float(self.program.loss) / done
                shown = {
                    "epoch": f"{epoch + 1}/{self.config.run.epochs}",
                    "loss": f"{loss:.4f}",
                    "lr": f"{rate:.3g}",
                }
                self.progress.advance(epoch * count + done, shown)
        mean = float(self.run.processes.all_reduce_mean(self.program.loss.clone())) / count
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"the loss of epoch {epoch} is {mean}, and the epoch was not saved",
                remedy="try a lower `lr`",
            )
        return mean

    def _is_validated(self, epoch: int) -> bool:
        """Whether an epoch, from 0, is `val_first`, a multiple of `val_freq` later, or the last."""
        since = epoch + 1 - self.config.linear.val_first
        is_due = since >= 0 and since % self.config.linear.val_freq == 0
        return is_due or epoch + 1 == self.config.run.epochs

    def _rate(self, epoch: int) -> float:
        """Return the learning rate: cosine from the peak to 0 by epochs (CosineAnnealingLR)."""
        return 0.5 * self._peak() * (1.0 + math.cos(math.pi * epoch / self.config.run.epochs))

    def _peak(self) -> float:
        scale = self._global_batch() / BATCH_OF_LR if self.config.linear.scale_lr else 1.0
        return self.config.rate.lr * scale

    def _global_batch(self) -> int:
        return self.config.data.batch_size_per_device * self.run.processes.world_size

    def _validate(self, epoch: int) -> LinearScore:
        score, count = self._score(), len(self.test.labels)
        logger.info("* %s", score.describe())
        logger.info(
            "Accuracy at epoch %d of the network on the %d test images: %.1f%%",
            epoch,
            count,
            score.top1,
        )
        self.layer.best = max(self.layer.best, score.top1)
        logger.info("Max accuracy so far: %.2f%%", self.layer.best)
        return score

    def _score(self) -> LinearScore:
        batch_size = self.task.reading.batch_size
        return score_head(
            self.infer, self.test, classes=self.task.classes, batch_size=batch_size, run=self.run
        )

    def _save(self, done: int, *, is_best: bool) -> None:
        """Write the checkpoint, which the original reads too, with the identity of the task."""
        rate, peak = self._rate(done), self._peak()
        self.layer.optimizer.param_groups[0].update(lr=rate, initial_lr=peak)
        scheduler = {
            "T_max": self.config.run.epochs,
            "eta_min": 0,
            "base_lrs": [peak],
            "last_epoch": done,
        }
        state = {
            "epoch": done,
            "state_dict": stored.add_prefix("module.", self.layer.head.state_dict()),
            "optimizer": self.layer.optimizer.state_dict(),
            "scheduler": {**scheduler, "_step_count": done + 1, "_last_lr": [rate]},
            "best_acc": self.layer.best,
            "args": as_dict(self.config),
            "identity": dict(self.task.identity),
            "format": checkpoint.FORMAT,
        }
        check_held(Path(self.config.run.output_dir))
        # The best comes first: a run killed in between repeats this epoch and finds it best again.
        for name in (BEST, CHECKPOINT) if is_best else (CHECKPOINT,):
            checkpoint.save_file(
                Path(self.config.run.output_dir) / name, self.run.device.to_host(state)
            )
