"""The training loop: epochs, log lines, checkpoints, and leaving well.

Shapes: K prototypes, D backbone width.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino import checkpoint
from dino.data.crops import CropRecipe
from dino.data.loaders import CropDataset, Share, TrainLoader, build_train_loader, choose_workers
from dino.data.photometric import build_normalisation
from dino.data.sources import ImageSource
from dino.errors import Interrupted, NonFiniteError, OptionError
from dino.flags import TrainOptions
from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.registry import build_backbone
from dino.models.weights import load_initial_weights
from dino.options import as_dict
from dino.runtime.context import Run, StopRequest
from dino.runtime.distributed import StopAgreement
from dino.runtime.metrics import MetricLog
from dino.runtime.progress import Progress
from dino.training.ema import build_teacher
from dino.training.loss import diagnose_collapse
from dino.training.optim import build_optimizer
from dino.training.plan import build_plan
from dino.training.resume import Identity, describe_identity, find_position
from dino.training.step import METERS, NON_FINITE_LIMIT, DinoProgram

logger = logging.getLogger(__name__)

LOG_EVERY = 10  # iterations between two log lines, as in the original; the device is read only then

Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the host read from the device on one log line.

    Attributes:
        sums: Epoch's sums by meter name.
        masked: Non-finite steps so far.
        masked_in_row: Those since the last finite one.
    """

    sums: Mapping[str, float]
    masked: int
    masked_in_row: int

    def mean_since(self, earlier: Mapping[str, float]) -> dict[str, float]:
        """Averages over the finite steps since an earlier reading's sums."""
        steps = self.sums["steps"] - earlier.get("steps", 0.0)
        return {
            name: (total - earlier.get(name, 0.0)) / steps if steps else math.nan
            for name, total in self.sums.items()
            if name != "steps"
        }


class Trainer:
    """One run, from its options to its last checkpoint."""

    def __init__(self, options: TrainOptions, source: ImageSource, run: Run, evaluate: Evaluate | None = None) -> None:
        """Build everything, and continue from the output folder's checkpoint if there is one.

        Args:
            options: Checked options (`training.checks`).
            source: The images.
            run: Device and processes.
            evaluate: Scores the teacher's backbone every `--eval_knn_every` epochs; called on every process.

        Raises:
            DinoError: Sizes that the network refuses, too few images, or a checkpoint of another run.
        """
        self.options, self.source, self.run, self.evaluate = options, source, run, evaluate
        self.folder = Path(options.run.output_dir)
        self.normalisation = build_normalisation(options.student.in_chans)
        run.device.seed(options.run.seed)
        self.student, self.teacher = build_networks(options, run)
        self.loader = build_loader(options, source, run)
        self.plan = build_plan(options, iterations=len(self.loader), world=run.processes.world)
        self.optimizer = build_optimizer(options.optim.optimizer, self.student)
        self.program = self._build_program()
        self.step = run.device.compile_train(self.program, self.optimizer, options.run.accumulate_steps)
        self.iteration = 0
        self.bad_images = 0
        self._begin()
        self.stop = StopRequest()
        self.agreement = StopAgreement(run.processes)
        self.warned: str | None = None

    def train(self) -> None:
        """Run the remaining epochs.

        Raises:
            Interrupted: A signal came, and the state is saved.
            NonFiniteError: Too many non-finite steps in a row.
            DataError: An image cannot be read.
        """
        processes, plan = self.run.processes, self.plan
        epoch = self.iteration // plan.iterations
        self.log = MetricLog(self.folder, epoch=epoch, iteration=self.iteration) if processes.is_first else None
        total = plan.epochs * plan.iterations
        self.progress = Progress(total, "training", start=self.iteration, shown=processes.is_first)
        try:
            with self.stop.listening():
                for epoch in range(epoch, plan.epochs):  # noqa: B020, PLR1704 - continues where the checkpoint stands
                    self._train_epoch(epoch)
        finally:
            self.progress.close()
            if self.log is not None:
                self.log.close()
        logger.info("done: %s", self.folder / checkpoint.LATEST)

    def _train_epoch(self, epoch: int) -> None:
        start = self.iteration % self.plan.iterations
        window = Window(self.iteration)
        if start == 0:
            self.program.meters.zero_()
            window.sums = {}
        else:
            window.sums = self._read().sums
        before = time.monotonic()
        for batch in self.loader.read(epoch, start):
            window.waited += time.monotonic() - before
            self.bad_images += int(batch.replaced.sum())
            self.run.device.seed(self._step_seed())
            self.step(batch, self.plan.inputs(self.iteration))
            self.iteration += 1
            self._after_step(window)
            before = time.monotonic()
        self._end_epoch(epoch)

    def _after_step(self, window: Window) -> None:
        at_end = self.iteration % self.plan.iterations == 0
        every = self.options.run.save_every_steps
        if self.iteration % LOG_EVERY == 0 or at_end:
            self._report(window)
            if self.agreement.check(bool(self.stop)):
                self._leave()
        elif self.stop and self.run.processes.world == 1:
            self._leave()
        if every and self.iteration % every == 0 and not at_end:
            self._save()

    def _report(self, window: Window) -> None:
        """The one place where training reads the device."""
        reading = self._read()
        if reading.masked_in_row >= NON_FINITE_LIMIT:
            raise NonFiniteError(
                f"{NON_FINITE_LIMIT} steps in a row were not finite (iteration {self.iteration}); nothing was saved since. "
                "Try a lower --lr, --precision fp32, a --clip_grad, or look for odd images"
            )
        means = reading.mean_since(window.sums)
        rate, weight_decay, *_ = self.plan.inputs(self.iteration - 1)
        seconds = time.monotonic() - window.began
        steps = self.iteration - window.iteration
        images = steps * self.plan.global_batch / seconds
        wait = window.waited / seconds
        shown = {
            "epoch": f"{(self.iteration - 1) // self.plan.iterations + 1}/{self.plan.epochs}",
            "loss": f"{means['loss']:.4f}",
            "lr": f"{rate:.3g}",
            "images/s": f"{images:.1f}",
            "wait": f"{wait:.0%}",
            **({"skipped steps": str(reading.masked)} if reading.masked else {}),
        }
        self.progress.advance(self.iteration, shown)
        self._warn_of_collapse(means)
        if self.log is not None:
            timings = {"examples/sec": images, "iter_time": seconds / steps, "data_time": window.waited / steps}
            scalars = {"lr": rate, "wd": weight_decay, "non_finite_steps": reading.masked, "data_wait_share": wait}
            self.log.write_scalars({**timings, **scalars, **means}, self.iteration)
        window.restart(self.iteration, reading.sums)

    def _warn_of_collapse(self, means: Mapping[str, float]) -> None:
        diagnosis = diagnose_collapse(
            entropy=means["entropy"], divergence=means["divergence"], prototypes=self.options.student.out_dim
        )
        kind = diagnosis.split(":")[0] if diagnosis else None
        if kind and kind != self.warned:
            logger.warning("%s", diagnosis)
        self.warned = kind

    def _end_epoch(self, epoch: int) -> None:
        means = self._read().mean_since({})
        rate, weight_decay, *_ = self.plan.inputs(self.iteration - 1)
        line: dict[str, Any] = {"train_loss": means["loss"], "train_lr": rate, "train_wd": weight_decay, "epoch": epoch}
        line |= {f"train_{name}": value for name, value in means.items() if name != "loss"}
        if self.bad_images:
            line["bad_images"] = self.bad_images
        every = self.options.run.eval_knn_every
        if self.evaluate is not None and every and (epoch + 1) % every == 0:
            line |= self._score(epoch)
        if self.log is not None:
            self.log.write_epoch(line)
        frequency = self.options.run.saveckp_freq
        self._save(numbered=epoch if frequency and epoch % frequency == 0 else None)

    def _score(self, epoch: int) -> Mapping[str, float]:
        assert self.evaluate is not None
        backbone = self.teacher.backbone
        was_training = backbone.training
        values = self.evaluate(backbone.eval())
        backbone.train(was_training)
        shown = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
        logger.info("epoch %d: %s", epoch + 1, shown)
        if self.log is not None:
            self.log.write_scalars(values, self.iteration)
        return values

    def _read(self) -> Reading:
        values = torch.cat([self.program.meters, self.program.non_finite]).tolist()
        sums = dict(zip(METERS, values, strict=False))
        return Reading(sums=sums, masked=int(values[-2]), masked_in_row=int(values[-1]))

    def _leave(self) -> None:
        if self._save():
            raise Interrupted(
                f"{self.stop.signal.name if self.stop.signal else 'another process was signalled'}: saved iteration "
                f"{self.iteration} in {self.folder / checkpoint.LATEST}; the same command continues"
            )

    def _save(self, numbered: int | None = None) -> bool:
        """Save unless the last step was masked; True if it was done (or is rank 0's to do)."""
        reading = self._read()
        if reading.masked_in_row:
            logger.warning("iteration %d: not saved, the last %d steps were not finite", self.iteration, reading.masked_in_row)
            return False
        if self.run.processes.is_first:
            state = self.run.device.to_host(self._state())
            checkpoint.save_latest(self.folder, state)
            checkpoint.save_file(self.folder / checkpoint.TEACHER, _backbone_only(state))
            if numbered is not None:
                checkpoint.keep_copy(self.folder, numbered, self.options.run.keep_checkpoints)
        return True

    def _state(self) -> dict[str, Any]:
        program = self.program.state_dict()
        scaler = self.step.state_dict()
        return {
            "student": checkpoint.add_prefix("module.", self.student.state_dict()),
            "teacher": self.teacher.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.iteration // self.plan.iterations,
            "args": as_dict(self.options),
            "dino_loss": {"center": program.pop("centre")},
            **({"fp16_scaler": scaler} if scaler else {}),
            "normalisation": {name: list(values) for name, values in asdict(self.normalisation).items()},
            "resume": {
                "identity": describe_identity(self._identity()),
                "program": program,
                "bad_images": self.bad_images,
            },
        }

    def _identity(self) -> Identity:
        return Identity(
            iteration=self.iteration,
            iterations=self.plan.iterations,
            world=self.run.processes.world,
            global_batch=self.plan.global_batch,
            images=len(self.source),
            fingerprint=self.source.fingerprint(),
        )

    def _begin(self) -> None:
        """Continue the run in the output folder, or start one, from weights where `--init_from` names some."""
        found = checkpoint.load_latest(self.folder, set_aside=self.run.processes.is_first)
        if found is not None:
            self._continue(*found)
        elif self.options.student.init_from:
            centre = load_initial_weights(self.student, self.options.student.init_from)
            build_teacher(self.teacher, self.student)
            if centre is not None:
                self.program.load_state_dict({"centre": centre})

    def _continue(self, state: Mapping[str, Any], path: Path, damaged: list[str]) -> None:
        for line in damaged:
            logger.warning("%s; continuing from the one before it", line)
        self.iteration = find_position(state, as_dict(self.options), self._identity())
        self.student.load_state_dict(_without_module(state["student"]))
        self.teacher.load_state_dict(_without_module(state["teacher"]))
        self.optimizer.load_state_dict(state["optimizer"])
        self.step.load_state_dict(state.get("fp16_scaler") or {})
        more = state.get("resume", {})
        self.program.load_state_dict({"centre": state["dino_loss"]["center"], **more.get("program", {})})
        self.bad_images = more.get("bad_images", 0)
        logger.info("continuing from %s at iteration %d", path, self.iteration)

    def _build_program(self) -> DinoProgram:
        device, options = self.run.device, self.options
        student = self.student
        if self.run.processes.world > 1:
            student = DistributedDataParallel(student, broadcast_buffers=False, gradient_as_bucket_view=True)
        compiled = options.precision.compile
        return DinoProgram(
            student=device.compile_module(student) if compiled else student,
            teacher=device.compile_module(self.teacher) if compiled else self.teacher,
            prototypes=options.student.out_dim,
            normalisation=self.normalisation,
            clip_grad=options.optim.clip_grad,
            autocast=device.autocast,
            average=self.run.processes.average,
            overflow_is_normal=device.scales_loss,
        )

    def _step_seed(self) -> int:
        """Seed of what an iteration draws (stochastic depth): nothing needs to be remembered to continue exactly."""
        key = (self.options.run.seed, self.iteration, self.run.processes.rank)
        return int(np.random.SeedSequence(key).generate_state(1)[0])


class Window:
    """The iterations between two log lines."""

    def __init__(self, iteration: int) -> None:
        """Begin at `iteration`."""
        self.restart(iteration, {})

    def restart(self, iteration: int, sums: Mapping[str, float]) -> None:
        """Begin anew; `sums` are the meters' values now."""
        self.iteration, self.sums = iteration, sums
        self.began, self.waited = time.monotonic(), 0.0


def build_networks(options: TrainOptions, run: Run) -> tuple[MultiCrop, MultiCrop]:
    """Build student and teacher, equal at first, on the device.

    Raises:
        OptionError: The architecture refuses the crop sizes or the number of channels.
    """
    student = _build_network(options, drop_path_rate=options.student.drop_path_rate, frozen=options.student.norm_last_layer)
    _check_crops(student.backbone, options)
    teacher = build_teacher(_build_network(options, drop_path_rate=0.0, frozen=True), student)
    device = run.device
    if run.processes.world > 1:
        student, teacher = device.synchronise_batch_norm(student), device.synchronise_batch_norm(teacher)
    return student.to(device.torch_device), teacher.to(device.torch_device)


def build_loader(options: TrainOptions, source: ImageSource, run: Run) -> TrainLoader:
    """Build the loader of this process's share of the crops.

    Raises:
        DataError: Fewer images than one global batch.
    """
    processes, data, crops = run.processes, options.data, options.crops
    recipe = CropRecipe(
        global_size=crops.global_crops_size,
        global_scale=crops.global_crops_scale,
        local_size=crops.local_crops_size,
        local_scale=crops.local_crops_scale,
        local_views=crops.local_crops_number,
        channels=options.student.in_chans,
    )
    skip_bad = options.train_data.on_bad_image == "skip"
    explicit = "num_workers" in options.explicit
    return build_train_loader(
        CropDataset(source, recipe, seed=options.run.seed, skip_bad=skip_bad),
        batch_size=data.batch_size_per_device * options.run.accumulate_steps,
        share=Share(rank=processes.rank, world=processes.world),
        workers=choose_workers(data.num_workers, explicit=explicit, processes_here=processes.local_world),
        pin_memory=run.device.pins_memory,
    )


def _build_network(options: TrainOptions, *, drop_path_rate: float, frozen: bool) -> MultiCrop:
    backbone = build_backbone(
        options.backbone.arch,
        patch_size=options.backbone.patch_size,
        in_chans=options.student.in_chans,
        img_size=options.crops.global_crops_size,
        drop_path_rate=drop_path_rate,
    )
    head = DINOHead(
        in_dim=backbone.embed_dim,
        out_dim=options.student.out_dim,
        use_bn=options.student.use_bn_in_head,
        norm_last_layer=frozen,
    )
    return MultiCrop(backbone, head)


def _check_crops(backbone: nn.Module, options: TrainOptions) -> None:
    """Let the untrained network refuse a size now and not in the first step."""
    sizes = {options.crops.global_crops_size} | ({options.crops.local_crops_size} if options.crops.local_crops_number else set())
    was_training = backbone.training
    for size in sorted(sizes):
        try:
            with torch.no_grad():
                backbone.eval()(torch.zeros(1, options.student.in_chans, size, size))
        except (RuntimeError, AssertionError, ValueError) as error:
            raise OptionError(f"--arch {options.backbone.arch} cannot take {size}-pixel crops: {error}") from error
    backbone.train(was_training)


def _backbone_only(state: Mapping[str, Any]) -> dict[str, Any]:
    teacher = {name: tensor for name, tensor in state["teacher"].items() if name.startswith("backbone.")}
    return {"teacher": teacher, **{name: state[name] for name in ("epoch", "args", "normalisation")}}


def _without_module(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("module."): tensor for name, tensor in weights.items()}
