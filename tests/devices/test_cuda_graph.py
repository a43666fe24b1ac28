"""The step as one CUDA graph, on recordings of the CPU's operators: the eager step's numbers to the
bit, whatever happens between two steps, and one line where it cannot work."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dino.devices
from dino.cli.options import parse
from dino.cli.session import open_session
from dino.devices import open_device
from dino.devices.cuda_graph import WARM_UP
from dino.errors import DeviceError, OptionError
from dino.models.multicrop import MultiCrop
from dino.training.build import build_networks, build_program, check_replay
from dino.training.checks import check_images
from dino.training.config import TrainConfig
from dino.training.draws import StepDraws
from dino.training.dry_run import PhaseClock, draw_batch
from dino.training.optim import build_optimizer
from dino.training.plan import build_plan
from dino.training.trainer import Trainer
from tests.graph_replay import LikeCuda

SMALL = "--data_path demo --arch vit_mini --patch_size 8 --global_crops_size 32 --local_crops_size 16 --out_dim 64"
SMALL += " --local_crops_number 2 --batch_size_per_device 4 --device cpu --epochs 1"
SMALL += " --warmup_epochs 0 --freeze_last_layer 0 --lr 0.03"
STEPS = WARM_UP + 5


class Bench:
    """Everything of a run that steps touch."""

    def __init__(self, words: str = "", precision: str = "bf16", *, replays: bool = True) -> None:
        self.config = parse(TrainConfig, [*SMALL.split(), *words.split()])
        self.device = LikeCuda(precision, replays=replays)
        with open_session(self.config) as run:
            run = dataclasses.replace(run, device=self.device)
            self.student, self.teacher = build_networks(self.config, run)
            optim = self.config.optim
            self.optimizer = build_optimizer(
                optim.optimizer, self.student, fused=self.device.fuses_updates, eps=optim.eps
            )
            self.program = build_program(self.config, self.student, self.teacher, run)
            micro_batches = self.config.run.accumulate_steps
            self.step = self.device.compile_train(self.program, self.optimizer, micro_batches)
        self.draws = StepDraws(self.config, self.student, self.device)
        self.plan = build_plan(self.config, iterations=STEPS, world_size=1)
        self.base = draw_batch(self.config)

    def run(self, first: int = 0, last: int = STEPS, *, masked: int | None = None) -> Bench:
        for place in range(first, last):
            inputs = self.plan.inputs(place, self.draws.begin(place))
            if place == masked:
                inputs = inputs._replace(temperature=torch.tensor(float("nan")))
            pixels = self.base.global_pixels.roll(place, 0)
            self.step(self.base._replace(global_pixels=pixels), inputs)
        return self

    def state(self) -> dict[str, Any]:
        networks = {"student": self.student.state_dict(), "teacher": self.teacher.state_dict()}
        own = {"optimizer": self.optimizer.state_dict(), "program": self.program.state_dict()}
        state: dict[str, Any] = self.device.to_host({**networks, **own})
        return state

    def load(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)  # the optimizer keeps the tensors that it is given
        self.student.load_state_dict(state["student"])
        self.teacher.load_state_dict(state["teacher"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.program.load_state_dict(state["program"])


def bits(value: Any, name: str = "") -> dict[str, bytes]:
    if isinstance(value, Tensor):
        return {name: value.detach().numpy().tobytes()}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    found: dict[str, bytes] = {}
    for key, part in pairs:
        if isinstance(part, Tensor | dict | list | tuple):
            found |= bits(part, f"{name}.{key}")
    return found


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    ours, theirs = bits(one), bits(other)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    return [name for name in ours if ours[name] != theirs[name]]


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        ("", "bf16"),
        ("", "fp32"),
        ("--optimizer sgd --accumulate_steps 2", "fp32"),
        ("--optimizer lars --recompute blocks", "bf16"),
        ("--use_bn_in_head true --drop_path_rate 0 --clip_grad 0", "fp32"),
    ],
)
def test_replays_are_the_eager_steps_to_the_bit(words: str, precision: str) -> None:
    masked = STEPS - 3  # a replayed one
    eager = Bench(words, precision, replays=False).run(masked=masked)
    graph = Bench(words, precision).run(masked=masked)
    recorder = graph.device.recorder
    counts = recorder.aside, recorder.recorded, recorder.replayed
    assert counts == (WARM_UP, 1, STEPS - WARM_UP)
    assert differing(eager.state(), graph.state()) == []
    assert graph.program.non_finite.tolist() == [1, 0]
    assert graph.program.meters[0] == STEPS - 1


def test_the_state_stays_in_its_tensors_whoever_replaces_them() -> None:
    eager, graph = Bench(replays=False).run(), Bench().run()
    held = graph.program.meters
    for bench in (eager, graph):
        bench.program.meters.zero_()
        bench.program.load_state_dict({"centre": torch.ones(1, 64)})
        bench.run(0, 2)
    assert graph.program.meters is held and held[0] == 2
    assert graph.device.recorder.recorded == 1
    assert differing(eager.state(), graph.state()) == []


def test_a_run_continues_from_a_state_in_a_new_process_and_in_the_same_one() -> None:
    whole = Bench().run()
    half = Bench().run(0, WARM_UP + 2)
    state = half.state()
    new = Bench()
    new.load(state)
    assert differing(new.run(WARM_UP + 2).state(), whole.state()) == []
    half.run(WARM_UP + 2).load(state)
    assert differing(half.run(WARM_UP + 2).state(), whole.state()) == []


def test_phases_are_told_of_steps_that_run_and_not_while_recording() -> None:
    bench = Bench()
    clock = PhaseClock(bench.device.synchronize)
    bench.program.enter = clock.enter
    bench.run(0, WARM_UP)
    assert {"augmentation", "teacher", "student", "loss", "backward"} <= clock.seconds.keys()
    clock.seconds.clear()
    bench.run(WARM_UP)
    assert not clock.seconds and bench.program.enter == clock.enter


def test_a_batch_stays_its_owners() -> None:
    bench = Bench()
    batches = [
        bench.base._replace(global_pixels=torch.full_like(bench.base.global_pixels, level))
        for level in (1, 2)
    ]
    for batch in batches:
        bench.step(batch, bench.plan.inputs(0, bench.draws.begin(0)))
    assert [int(batch.global_pixels.max()) for batch in batches] == [1, 2]


def test_another_shape_is_one_line() -> None:
    bench = Bench().run(0, 1)
    inputs = bench.plan.inputs(1, bench.draws.begin(1))
    less = type(bench.base)(*(field[:2] for field in bench.base))
    with pytest.raises(DeviceError, match=r"one shape: \(4, 2, 32, 32, 3\) before, \(2, "):
        bench.step(less, inputs)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--device cpu", "`cuda_graph` is for `device` cuda only, and this is cpu"),
        ("--device hpu", "`cuda_graph` is for `device` cuda only, and this is hpu"),
        ("--device ipu", "`cuda_graph` is for `device` cuda only, and this is ipu"),
        ("--device cuda", "`cuda_graph` does not work with `precision` fp16"),
    ],
)
def test_where_it_cannot_work_it_is_refused(words: str, message: str) -> None:
    config = parse(TrainConfig, [*SMALL.split(), "--cuda_graph", *words.split()])
    with pytest.raises(OptionError, match=message):
        open_device(config.device, precision=config.precision)


def test_networks_that_draw_and_several_processes_are_refused() -> None:
    bench = Bench()
    drawing = MultiCrop(nn.Sequential(nn.Flatten(), nn.Dropout()), bench.student.head)
    with open_session(bench.config) as run:
        check_replay(bench.config, bench.student, run)
        with pytest.raises(OptionError, match="`arch` vit_mini, which draws random numbers"):
            check_replay(bench.config, drawing, run)
        run.processes.world_size = 2
        with pytest.raises(OptionError, match="one process, and this run has 2"):
            check_replay(bench.config, bench.student, run)
        run.processes.world_size = 1


def train(folder: Path, words: str) -> list[dict[str, float]]:
    line = [*SMALL.split(), "--device", "cuda", "--precision", "bf16", "--num_workers", "0"]
    line += ["--output_dir", str(folder), "--data_limit", "40", *words.split()]
    config = parse(TrainConfig, line)
    folder.mkdir()
    with open_session(config, precision=config.precision) as run:
        Trainer(config, check_images(config), run).train()
    lines = (folder / "log.txt").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def _like_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def open_like(name: str, precision: str, *_: Any) -> LikeCuda:
        return LikeCuda(precision)

    monkeypatch.setattr(dino.devices, "_open_usual", open_like)


@pytest.mark.usefixtures("_like_cuda")
def test_a_run_logs_the_eager_runs_numbers(tmp_path: Path) -> None:
    eager = train(tmp_path / "eager", "--epochs 3")
    graph = train(tmp_path / "graph", "--epochs 3 --cuda_graph")
    assert len(eager) == 3 and {"train_loss", "train_entropy"} <= eager[0].keys(), eager[0]
    for ours, theirs in zip(graph, eager, strict=True):
        same = {name: value for name, value in theirs.items() if name.startswith("train_")}
        assert {name: ours[name] for name in same} == same
