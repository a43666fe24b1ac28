"""On a simulated card, the steady state of a run: no host read, no new graph, no operator that runs
on the host.

What each mode counts. Lazy: a graph is what lies between two step marks, new if an operator, a
shape, a number format or a baked number differs from all before. Eager: the same for each operator
by itself. Compiled: the graphs that torch.compile hands to `hpu_backend`, and the operators around
them as in eager mode. A host read is a value, a copy to host memory or a shape that depends on
values; a fallback is an operator that the bridge has not and the host runs. A join is a wait for
the bridge's own threads; a launch is an operator or a compiled graph that the host gives the card.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import hpu_simulator
from tests.running import make_labelled, on_simulated_card, train, train_pair

ROOT = Path(__file__).parents[2]
STEPS = 10  # an epoch; the log line is at its end
RUNS = (  # each mode in both number formats and of both releases
    ("eager", "fp32", "1.24"),
    ("eager", "ops", "1.19"),
    ("lazy", "fp32", "1.19"),
    ("lazy", "ops", "1.24"),
    ("compiled", "fp32", "1.24"),
    ("compiled", "ops", "1.19"),
)
MODES = {
    "eager": ("--lazy_mode", "false"),
    "lazy": ("--lazy_mode", "true"),
    "compiled": ("--compile",),
}
# Where new graphs are due: the first three steps (the second is the first with a learning rate
# above 0), the first
# unfrozen one, and the last of the first epoch, which the first log line and the first score
# follow.
DUE = {0, 1, 2, STEPS - 1, STEPS}
# Waits for the bridge's threads. Our networks need no seed, but the batch's first copy out of
# pinned memory waits for
# what the last step has queued; from pageable memory it would not, and would be copied once more on
# the host.
JOINS = {"eager": 1, "compiled": 1, "lazy": 0}
# (launches, graphs) of each phase of a compiled step, for any network of ours. The backward pass
# scales the loss's gradients by the upstream gradient and sums micro-batches outside of graphs.
COMPILED = {
    "augmentation": (0, 1),
    "teacher": (0, 1),
    "student": (0, 1),
    "loss": (0, 1),
    "exchange": (1, 0),
    "backward": (10, 1),
    "update": (0, 1),
}
# Launches of each phase of an eager or lazy step with 12 blocks, all that the host queues:
# fp32, bf16, and op lists on either release.
QUEUED = {
    "augmentation": 340,
    "teacher": 460,
    "student": 650,
    "loss": 65,
    "exchange": 1,
    "backward": 720,
    "update": 160,
}
FALLBACKS: set[str] = set()  # none is known that the training step needs

pytestmark = pytest.mark.skipif(
    hpu_simulator.why_unavailable() is not None,
    reason=f"no simulated hpu: {hpu_simulator.why_unavailable()}",
)


def record_steps(path: str, release: str) -> None:
    """Write what the device saw from each step's start to the next one's, as JSON lines."""
    os.environ["HPU_SIMULATOR_RELEASE"] = release
    on_simulated_card()
    hpu_simulator.mark_phases()
    from dino.devices.eager import EagerStep
    from dino.training import build, trainer

    whole, state = EagerStep.__call__, {}

    def close() -> None:
        if "watch" in state:
            state.pop("watch").__exit__(None, None, None)
            with open(path, "a", encoding="utf-8") as file:
                file.write(
                    json.dumps({**describe(state.pop("seen")), "shapes": state["shapes"]}) + "\n"
                )
            state["shapes"].clear()

    keep_shapes = functools.partial(_remember_shapes, state.setdefault("shapes", {}))
    build_both = build.build_networks

    def build_and_watch(*args: Any) -> Any:
        networks = build_both(*args)
        for name, network in zip(("student", "teacher"), networks, strict=True):
            network.backbone.register_forward_pre_hook(functools.partial(keep_shapes, name))
        return networks

    build.build_networks = build_and_watch

    @functools.wraps(whole)
    def step(self: EagerStep, *args: Any) -> None:
        close()
        state["shapes"].clear()  # of a score before the first step
        state["watch"] = hpu_simulator.watch()
        state["seen"] = state["watch"].__enter__()
        whole(self, *args)

    EagerStep.__call__ = step
    finish = trainer.Trainer.train

    def train_and_close(self: Any) -> None:
        finish(self)
        close()

    trainer.Trainer.train = train_and_close


def _remember_shapes(
    shapes: dict[str, list], name: str, _module: object, inputs: tuple[Any]
) -> None:
    for views in inputs[0]:
        if list(views.shape) not in shapes.setdefault(name, []):
            shapes[name].append(list(views.shape))


def describe(seen: hpu_simulator.Seen) -> dict[str, Any]:
    return {
        "reads": [list(read) for read in seen.host_reads],
        "fallbacks": dict(seen.fallbacks),
        "graphs": len(seen.graphs),
        "new": [graph.difference for graph in seen.new_graphs] + seen.new_ops,
        "float64": dict(seen.float64),
        "uploads": seen.uploads.count,
        "blocking": seen.uploads.blocking,
        "collectives": seen.collectives,
        "joins": [list(join) for join in seen.joins],
        "launches": seen.launches.operators,
        "compiled": seen.launches.graphs,
    }


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of twenty training and five validation images."""
    return make_labelled(tmp_path_factory.mktemp("images"), {"train": 20, "val": 5})


@pytest.fixture(scope="module", params=RUNS, ids="-".join)
def steps(
    request: pytest.FixtureRequest, images: Path, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """A run of three epochs with everything that changes from step to step or from epoch to
    epoch."""
    mode, numbers, release = request.param
    folder = tmp_path_factory.mktemp(f"{mode}_{numbers}")
    words = (
        "--data_path",
        images / "train",
        "--output_dir",
        folder / "run",
        "--device",
        "hpu",
        *MODES[mode],
    )
    schedules = (
        "--epochs",
        3,
        "--warmup_epochs",
        1,
        "--warmup_teacher_temp",
        0.03,
        "--warmup_teacher_temp_epochs",
        2,
    )
    more = (
        "--precision",
        numbers,
        "--drop_path_rate",
        0.1,
        "--local_crops_number",
        2,
        "--eval_knn_every",
        1,
        "--own_view_images",
        8,
        "--draw_pictures",
        "true",
    )
    prepare = functools.partial(record_steps, str(folder / "seen"), release)
    result = train(folder, *words, *schedules, *more, prepare=prepare)
    assert result.code == 0, result.text
    assert f"device: hpu, {numbers}, {mode} mode" in result.text
    seen = [json.loads(line) for line in (folder / "seen").read_text().splitlines()]
    assert len(seen) == 3 * STEPS
    assert (folder / "run" / "epoch_patches.png").exists() and "cannot be drawn" not in result.text
    return seen


def test_the_host_reads_nothing_between_two_log_lines(steps: list[dict[str, Any]]) -> None:
    between = {place: step["reads"] for place, step in enumerate(steps) if (place + 1) % STEPS}
    assert {place: reads for place, reads in between.items() if reads} == {}


def test_the_steady_state_has_no_new_graph(steps: list[dict[str, Any]]) -> None:
    new = {place: step["new"][:3] for place, step in enumerate(steps) if step["new"]}
    assert new.keys() <= DUE, {place: new[place] for place in new.keys() - DUE}


def test_no_operator_of_the_step_runs_on_the_host(steps: list[dict[str, Any]]) -> None:
    found = {
        name
        for place, step in enumerate(steps)
        if (place + 1) % STEPS
        for name in step["fallbacks"]
    }
    assert found <= FALLBACKS


def test_nothing_on_the_card_has_64_bits(steps: list[dict[str, Any]]) -> None:
    assert {name for step in steps for name in step["float64"]} == set()


def test_backbones_see_two_shapes_and_one(
    steps: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    if "compiled" in request.node.name:
        pytest.skip("a compiled network calls no hooks; its graphs are counted")
    for place, step in enumerate(steps):
        if (place + 1) % STEPS:
            assert step["shapes"] == {
                "student": [[8, 3, 16, 16], [8, 3, 8, 8]],
                "teacher": [[8, 3, 16, 16]],
            }


def test_no_upload_makes_the_host_wait(steps: list[dict[str, Any]]) -> None:
    assert {
        step["blocking"] for place, step in enumerate(steps) if place and (place + 1) % STEPS
    } == {0}


def test_the_host_seldom_waits_for_the_bridges_threads(
    steps: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    bound = next(JOINS[mode] for mode in JOINS if mode in request.node.name)
    later = [
        step["joins"] for place, step in enumerate(steps) if place > STEPS and (place + 1) % STEPS
    ]
    assert max(map(len, later)) <= bound, later[0]


def test_every_step_cuts_as_many_graphs_and_uploads_and_launches_as_much(
    steps: list[dict[str, Any]],
) -> None:
    later = [step for place, step in enumerate(steps) if place > STEPS and (place + 1) % STEPS]
    for what in ("graphs", "uploads", "launches", "compiled"):
        assert all(step[what] == later[0][what] for step in later), what


def test_a_compiled_step_is_six_graphs_and_a_few_launches(
    steps: list[dict[str, Any]], request: pytest.FixtureRequest
) -> None:
    if "compiled" not in request.node.callspec.id:
        pytest.skip("in other modes each operator is launched or queued")
    for step in steps[STEPS + 1 : 2 * STEPS - 1]:
        assert step["launches"].keys() | step["compiled"].keys() <= COMPILED.keys()
        for phase, (launches, graphs) in COMPILED.items():
            assert step["launches"].get(phase, 0) <= launches, phase
            assert step["compiled"].get(phase, 0) == graphs, phase


def record_small_buckets(path: str, release: str) -> None:
    """As `record_steps`, with gradients in several buckets."""
    record_steps(path, release)
    from dino.devices.hpu.device import HpuDevice

    HpuDevice.bucket_bytes = 250_000


@pytest.mark.parametrize("mode", ["compiled", "lazy"])
def test_two_cards_add_a_few_launches_a_bucket(images: Path, tmp_path: Path, mode: str) -> None:
    words = ["--data_path", images / "train", "--output_dir", tmp_path / "run", "--device", "hpu"]
    words += [*MODES[mode], "--epochs", 2, "--warmup_epochs", 1, "--precision", "bf16"]
    words += ["--local_crops_number", 2, "--batch_size_per_device", 2]
    prepare = tuple(
        functools.partial(record_small_buckets, str(tmp_path / f"seen{rank}"), "1.24")
        for rank in range(2)
    )
    results = train_pair(tmp_path, *words, prepare=prepare)
    assert [result.code for result in results] == [0, 0], results
    seen = [json.loads(line) for line in (tmp_path / "seen0").read_text().splitlines()]
    assert {place for place, step in enumerate(seen) if step["new"]} <= DUE
    step = seen[-3]
    assert (step["reads"], step["blocking"]) == ([], 0)
    # The exchange of the statistics is one collective; each other one is a bucket.
    buckets = step["collectives"] - 1
    assert buckets >= 3
    if mode == "lazy":
        assert step["graphs"] <= 3 + buckets
        return
    parts = step["compiled"]["student"]
    assert parts == step["compiled"]["backward"] >= 2
    launches = sum(step["launches"].values()) + sum(step["compiled"].values())
    one_card = sum(map(sum, COMPILED.values()))
    assert launches <= one_card + 4 * buckets


@pytest.mark.parametrize(
    ("precision", "mode", "release"),
    [("bf16", "eager", "1.24"), ("ops", "lazy", "1.19"), ("fp32", "lazy", "1.24")],
)
def test_a_step_of_twelve_blocks_queues_few_operators(
    precision: str, mode: str, release: str
) -> None:
    """ViT-Ti has as many operators as ViT-S: only their widths differ."""
    words = ["--arch", "vit_tiny", "--out_dim", "256", "--drop_path_rate", "0.1"]
    words += ["--precision", precision, *MODES[mode]]
    line = subprocess.run(
        [sys.executable, "benchmarks/hpu_launches.py", *words],
        env={**os.environ, "HPU_SIMULATOR_RELEASE": release},
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout.splitlines()[-1]
    found = json.loads(line)
    assert found["launches"].keys() == QUEUED.keys()
    assert {k: v for k, v in found["launches"].items() if v > QUEUED[k]} == {}
    assert found["lazy graphs"] == (3 if mode == "lazy" else 0)
