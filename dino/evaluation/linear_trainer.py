"""The epochs of a linear layer: log lines, validation, checkpoint, and going on where a run left off."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino import checkpoint
from dino.errors import CheckpointError, NonFiniteError
from dino.evaluation.features import Features
from dino.evaluation.linear_batches import Lessons
from dino.evaluation.linear_head import LinearHead, LinearProgram, LinearScore, MomentumSGD, Samples, score_head
from dino.evaluation.linear_task import CHECKPOINT, LinearTask, load_head
from dino.flags import LinearOptions
from dino.options import as_dict
from dino.runtime.context import Run
from dino.runtime.metrics import MetricLog
from dino.runtime.progress import Progress

logger = logging.getLogger(__name__)

BATCH_OF_LR = 256  # --lr is meant for this global batch (linear scaling rule of the original)
LOG_EVERY = 20  # steps between two progress lines, as in the original


class LinearTrainer:
    """One run, from its task to its last checkpoint."""

    def __init__(self, options: LinearOptions, task: LinearTask, run: Run) -> None:
        """Build the head, and continue from the output folder's checkpoint if there is one.

        Raises:
            DinoError: The checkpoint is damaged or of another run.
        """
        self.options, self.task, self.run = options, task, run
        self.path = Path(options.run.output_dir) / CHECKPOINT
        run.device.seed(options.run.seed)
        self.head = LinearHead(task.width, task.classes)
        state = load_head(self.head, self.path, task.identity) if self.path.exists() else None
        self.head.to(run.device.torch_device)
        self.optimizer = MomentumSGD(self.head.parameters())
        self.epoch, self.best = 0, 0.0
        if state is not None:
            self._restore(state)
        self.infer = run.device.compile_eval(self.head)

    def run_epochs(self, lessons: Lessons, test: Features) -> LinearScore:
        """Run the remaining epochs; gives the last validation's score.

        Args:
            lessons: What to learn from.
            test: Features of all images to score on, in host memory; they do not change from epoch to epoch.

        Raises:
            NonFiniteError: The loss is not finite any more.
            DinoError: An image cannot be read, or a file cannot be written.
        """
        first, epochs = self.run.processes.is_first, self.options.run.epochs
        self.batches = lessons.batches
        self.program = LinearProgram(self.head, lessons.describe, self.run.processes)
        self.step = self.run.device.compile_train(self.program, self.optimizer, 1)
        start, total = (epoch * len(self.batches) for epoch in (self.epoch, epochs))
        self.progress = Progress(total, "linear layer", start=start, shown=first)
        log = MetricLog(self.path.parent, epoch=self.epoch, iteration=self.epoch) if first else None
        try:
            score = self._score(test) if self.epoch >= epochs else None
            for epoch in range(self.epoch, epochs):
                values = {"train_lr": self._rate(epoch), "train_loss": self._train_epoch(epoch)}
                if epoch % self.options.linear.val_freq == 0 or epoch == epochs - 1:
                    score = self._validate(test, epoch)
                    values |= {f"test_{name}": value for name, value in score.named().items()}
                if log is not None:
                    self._record(log, epoch, values)
        finally:
            self.progress.close()
            if log is not None:
                log.close()
        assert score is not None
        logger.info("Training of the supervised linear classifier on frozen features completed.")
        logger.info("Top-1 test accuracy: %.1f", self.best)
        return score

    def _train_epoch(self, epoch: int) -> float:
        """One pass; gives the mean loss over all processes."""
        count, rate = len(self.batches), self._rate(epoch)
        every = count if self.options.linear.cache_features else LOG_EVERY  # epochs of kept features are over at once
        self.program.loss.zero_()
        for done, batch in enumerate(self.batches.read(epoch), start=1):
            self.step(Samples(*batch[:2]), (rate, 0.0, 0.0, 0.0, 1.0))
            if done % every == 0 or done == count:
                loss = float(self.program.loss) / done
                shown = {"epoch": f"{epoch + 1}/{self.options.run.epochs}", "loss": f"{loss:.4f}", "lr": f"{rate:.3g}"}
                self.progress.advance(epoch * count + done, shown)
        mean = float(self.run.processes.average(self.program.loss.clone())) / count
        if not math.isfinite(mean):
            raise NonFiniteError(f"the loss of epoch {epoch} is {mean}; nothing was saved since, try a lower --lr")
        return mean

    def _rate(self, epoch: int) -> float:
        """Cosine from the peak in epoch 0 to 0, by whole epochs (torch's CosineAnnealingLR)."""
        return 0.5 * self._peak() * (1.0 + math.cos(math.pi * epoch / self.options.run.epochs))

    def _peak(self) -> float:
        batch = self.options.data.batch_size_per_device * self.run.processes.world
        return self.options.rate.lr * batch / BATCH_OF_LR

    def _validate(self, test: Features, epoch: int) -> LinearScore:
        score, count = self._score(test), len(test.labels)
        logger.info("* %s", score.describe())
        logger.info("Accuracy at epoch %d of the network on the %d test images: %.1f%%", epoch, count, score.top1)
        self.best = max(self.best, score.top1)
        logger.info("Max accuracy so far: %.2f%%", self.best)
        return score

    def _score(self, test: Features) -> LinearScore:
        batch_size = self.task.reading.batch_size
        return score_head(self.infer, test, classes=self.task.classes, batch_size=batch_size, run=self.run)

    def _record(self, log: MetricLog, epoch: int, values: Mapping[str, float]) -> None:
        """The epoch in TensorBoard, log.txt and the checkpoint; without the last the others are written anew."""
        log.write_scalars(values, epoch + 1)
        log.write_epoch({**values, "epoch": epoch})
        self._save(epoch + 1)

    def _save(self, done: int) -> None:
        """Write the checkpoint as the original does, so that each reads the other's; and what this run belongs to."""
        rate, peak = self._rate(done), self._peak()
        self.optimizer.param_groups[0].update(lr=rate, initial_lr=peak)
        scheduler = {"T_max": self.options.run.epochs, "eta_min": 0, "base_lrs": [peak], "last_epoch": done}
        state = {
            "epoch": done,
            "state_dict": checkpoint.add_prefix("module.", self.head.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {**scheduler, "_step_count": done + 1, "_last_lr": [rate]},
            "best_acc": self.best,
            "args": as_dict(self.options),
            "identity": dict(self.task.identity),
        }
        checkpoint.save_file(self.path, self.run.device.to_host(state))

    def _restore(self, state: Mapping[str, Any]) -> None:
        missing = [name for name in ("epoch", "optimizer", "best_acc") if name not in state]
        if missing:
            raise CheckpointError(
                f"{self.path} is no checkpoint of a run: it lacks {', '.join(missing)}; "
                "move it away, or score it with --evaluate"
            )
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.best = int(state["epoch"]), float(state["best_acc"])
        logger.info("continuing at epoch %d, best accuracy so far %.2f%%", self.epoch, self.best)
