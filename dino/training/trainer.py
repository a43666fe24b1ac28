"""The training loop: epochs, log lines, checkpoints, and a clean stop on signals."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dino import checkpoint, stored
from dino.config import as_dict, as_recipe
from dino.data.image_source import ImageSource
from dino.errors import NonFiniteError
from dino.runtime.context import Run
from dino.runtime.distributed import StopAgreement
from dino.runtime.ownership import write_recipe
from dino.runtime.signals import StopRequest
from dino.training.bad_images import BadImages
from dino.training.build import build_loader, build_step
from dino.training.checks import check_device
from dino.training.config import TrainConfig
from dino.training.ema import build_teacher, set_modes
from dino.training.inside import Held, check_inside, without_module
from dino.training.pictures import Album, Pictures
from dino.training.plan import build_plan
from dino.training.report import LoaderStats, Reporter, read_device
from dino.training.resume import Identity, find_position, is_over
from dino.training.saving import Saver
from dino.training.scores import NO_SCORERS, Scorers, Scores
from dino.training.step_values import NON_FINITE_LIMIT
from dino.weights.initial import load_initial_weights

logger = logging.getLogger(__name__)

LOG_EVERY = 10  # iterations between log lines, as in the original; the host reads only then


class Trainer:
    """One run, from its settings to its last checkpoint."""

    def __init__(
        self,
        config: TrainConfig,
        source: ImageSource,
        run: Run,
        scorers: Scorers = NO_SCORERS,
        *,
        pictures: Pictures | None = None,
        recipe: str | None = None,
    ) -> None:
        """Build everything, and continue from the output folder's checkpoint if there is one.

        Args:
            config: Checked settings (`training.checks`).
            source: The images.
            run: Device and processes.
            scorers: What scores the teacher's backbone from time to time.
            pictures: Draws the run's pictures; None to draw nothing.
            recipe: Text of recipe.yaml, which reproduces the run; defaults to all settings.

        Raises:
            DinoError: The network does not accept the sizes, there are too few images, or the
                checkpoint belongs to another run.
        """
        check_device(config, run.device)
        self.config, self.source, self.run = config, source, run
        self.folder = Path(config.run.output_dir)
        parts = build_step(config, run)
        self.student, self.teacher, self.optimizer, self.program, self.step, self.draws = parts
        self.loader = build_loader(config, source, run)
        iterations, world_size = len(self.loader), run.processes.world_size
        self.plan = build_plan(
            config, iterations=iterations, world_size=world_size, device=run.device
        )
        self.scores = Scores(config.run, scorers, images=len(source))
        self.bad_images = BadImages(run, skips=config.train_data.on_bad_image == "skip")
        self.iteration, self.unfinished = 0, False
        self.mode = run.device.mode
        self.stop = StopRequest(alone=world_size == 1)
        self.agreement = StopAgreement(run.processes)
        self.saver = Saver(self.folder, keep=config.run.keep_checkpoints)
        self._begin()
        self.over = is_over(self.folder, self.plan, self.iteration)
        recipe = recipe or as_recipe(config, as_dict(config))
        if run.processes.is_rank_zero and not self.over:
            write_recipe(self.folder, recipe)
        self.reporter = Reporter(
            self.folder,
            self.plan,
            prototypes=config.student.out_dim,
            iteration=self.iteration,
            shown=run.processes.is_rank_zero,
            log_to=config.run.log_to,
            feeding=LoaderStats.of(self.loader.workers, run.processes),
        )
        self.reporter.write_settings(recipe, as_dict(config))
        self.album = Album(pictures, self.program, self.reporter.write_pictures)

    def train(self) -> None:
        """Run the remaining epochs.

        Raises:
            Interrupted: A signal arrived, and the state is saved.
            KeyboardInterrupt: Ctrl-C came twice, or while there was nothing to save.
            NonFiniteError: There were too many non-finite steps in a row.
            DataError: An image cannot be read.
            CheckpointError: A checkpoint could not be written; the one before it is intact.
        """
        with self.stop.listening(), self.reporter, self.saver:
            if not self.iteration:
                self._report_scores(self.scores.begin(self.teacher.backbone))
            if self.unfinished:
                self._end_epoch()
            for epoch in range(self.iteration // self.plan.iterations, self.plan.epochs):
                self._train_epoch(epoch)
        if not self.over:
            logger.info("done: %s; %s", self.folder / checkpoint.LATEST, self.scores.judge())

    def _train_epoch(self, epoch: int) -> None:
        inside = self.iteration % self.plan.iterations
        if not inside:
            self.program.meters.zero_()
        self.reporter.begin_window(self.iteration, read_device(self.program).sums)
        before = time.monotonic()
        for batch in self.loader.read(epoch, inside):
            self.reporter.waited += time.monotonic() - before
            self.run.processes.phase = f"iteration {self.iteration}"
            self.bad_images.see(batch)
            self.album.see(batch, self.iteration)
            self.step(batch, self.plan.inputs(self.iteration, self.draws.begin(self.iteration)))
            self.iteration = self.stop.done = self.iteration + 1
            self.reporter.end.see_update(self.iteration, self.run.device.synchronize)
            self._after_step()
            before = time.monotonic()

    def _after_step(self) -> None:
        """Log, end the epoch, save and stop, each when it is due."""
        at_end = self.iteration % self.plan.iterations == 0
        every = self.config.run.save_every_steps
        logs = self.iteration % LOG_EVERY == 0 or at_end
        if logs:
            self._report()
        saved = False
        if at_end:
            saved = self._end_epoch()
        elif every and self.iteration % every == 0:
            saved = self._save()
        if (logs or self.run.processes.world_size == 1) and self.agreement.check(bool(self.stop)):
            self._leave(saved)

    def _report(self) -> None:
        """Report the last iterations; the steady state reads the device only here."""
        self.saver.check()
        with self.run.processes.waiting("the device"):
            reading = read_device(self.program)
        if reading.masked_in_row >= NON_FINITE_LIMIT:
            raise NonFiniteError(
                f"{NON_FINITE_LIMIT} steps in a row were not finite, "
                f"up to iteration {self.iteration}",
                remedy="the last checkpoint predates them. Try a lower `lr`, `precision` fp32 or a "
                "`clip_grad`, or look for bad images",
            )
        self.reporter.report(reading, self.iteration, self.run.device.read_counters())

    def _end_epoch(self) -> bool:
        """Score, log and save; return whether the checkpoint was written."""
        epoch, frequency = self.iteration // self.plan.iterations - 1, self.config.run.saveckp_freq
        if self.scores.reads_images(epoch):
            self.unfinished = True
            self._save()  # scoring takes a while and may fail; the epoch must not be lost with it
        more: dict[str, Any] = self.scores(self.teacher.backbone, epoch)
        self._report_scores(more)
        self.unfinished = False
        more |= {"bad_images": bad} if (bad := self.bad_images.add_up()) else {}
        self.reporter.end_epoch(read_device(self.program), self.iteration, more)
        saved = self._save(numbered=epoch if frequency and epoch % frequency == 0 else None)
        self.album.end_epoch(self.teacher, self.iteration)
        return saved

    def _report_scores(self, values: Mapping[str, float]) -> None:
        if values:
            set_modes(self.teacher)
            self.reporter.report_scores(values, self.iteration)

    def _leave(self, saved: bool) -> None:
        if saved or self._save():
            self.saver.wait()
            # Launchers end all processes once one has left, and rank 0 may still be writing.
            self.run.processes.barrier()
            raise self.stop.explain()

    def _save(self, numbered: int | None = None) -> bool:
        """Begin to save unless the last step was masked; return whether it will be saved."""
        masked = read_device(self.program).masked_in_row
        self.bad_images.add_up()
        if masked:
            why = "iteration %d is not saved: the last %d steps were not finite"
            logger.warning(why, self.iteration, masked)
            return False
        self.step.read_back()
        self.run.processes.phase = f"saving iteration {self.iteration}"
        latest = self.folder / checkpoint.LATEST
        written = functools.partial(self.stop.keep, self.iteration, latest)
        if self.run.processes.is_rank_zero:
            self.saver.wait()  # one copy of the state at a time
            state = self.run.device.to_host(self._state())
            best = self.scores.take_rise()
            self.saver.begin(state, numbered=numbered, best=best, written=written)
        else:
            written()
        self.stop.hand_over()
        return True

    def _state(self) -> dict[str, Any]:
        program, scaler = self.program.state_dict(), self.step.state_dict()
        pixels = asdict(self.program.normalization)
        return {
            "student": stored.add_prefix("module.", self.student.state_dict()),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.iteration // self.plan.iterations,
            "args": as_dict(self.config),
            "dino_loss": {"center": program.pop("centre")},
            **({"fp16_scaler": scaler} if scaler else {}),
            "normalisation": {name: list(values) for name, values in pixels.items()},
            "resume": {
                "identity": asdict(self._identity()),
                "program": program,
                "bad_images": self.bad_images.total,
                "unfinished": self.unfinished,
                "mode": self.mode,
                "scores": self.scores.state_dict(),
            },
            "format": checkpoint.FORMAT,
        }

    def _identity(self) -> Identity:
        return Identity(
            iteration=self.iteration,
            iterations=self.plan.iterations,
            world=self.run.processes.world_size,
            global_batch=self.plan.global_batch,
            images=len(self.source),
            fingerprint=self.source.fingerprint(),
        )

    def _begin(self) -> None:
        """Continue the run in the output folder, or start one, from `init_from` if it is set."""
        latest = checkpoint.load_latest(
            self.folder, set_aside=self.run.processes.is_rank_zero, check=self._check
        )
        if latest is not None:
            self._continue(*latest)
        elif self.config.student.init_from:
            center = load_initial_weights(
                self.student,
                self.config.student.init_from,
                in_chans=self.config.student.in_chans,
                patch_size=self.config.backbone.patch_size,
            )
            build_teacher(self.teacher, self.student)
            if center is not None:
                self.program.load_state_dict({"centre": center})
        self.run.processes.check_position(self.folder, "iteration", self.iteration)

    def _check(self, state: Mapping[str, Any], path: Path) -> None:
        held = Held(
            networks={"student": self.student, "teacher": self.teacher},
            optimizer=self.optimizer,
            program=self.program.state_dict(),
            scaler=self.step.state_dict(),
            args=as_dict(self.config),
        )
        check_inside(state, held, path)

    def _continue(self, state: Mapping[str, Any], path: Path, damaged: list[str]) -> None:
        for line in damaged:
            logger.warning("%s; continuing from the one before it", line)
        self.iteration = find_position(state, as_dict(self.config), self._identity())
        for name, network in (("student", self.student), ("teacher", self.teacher)):
            network.load_state_dict(without_module(state[name], name, path))
        self.optimizer.load_state_dict(state["optimizer"])
        self.step.load_state_dict(state.get("fp16_scaler") or {})
        more = state.get("resume", {})
        self.program.load_state_dict(
            {"centre": state["dino_loss"]["center"], **more.get("program", {})}
        )
        self.bad_images.total = more.get("bad_images", 0)
        self.unfinished = more.get("unfinished", False)
        self.scores.load_state_dict(more.get("scores", {}))
        if self.scores.take_rise() and self.run.processes.is_rank_zero:
            checkpoint.keep_best(path)  # a kill came after the save and before this
        self.mode = self.mode or more.get("mode")  # a device without modes keeps the old one
        self.stop.resume(self.iteration, path)
        logger.info("continuing from %s at iteration %d", path, self.iteration)
