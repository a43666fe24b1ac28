"""The layer, its update and its score against plain statements of them and against torch's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dino.devices import open_device
from dino.devices.config import DeviceConfig
from dino.errors import CheckpointError
from dino.evaluation.features import Features
from dino.evaluation.linear.head import (
    LinearHead,
    LinearInputs,
    LinearProgram,
    MomentumSGD,
    Samples,
    score_head,
)
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from tests import hpu_simulator

WIDTH, CLASSES = 7, 6
RATES = (0.5, 0.4, 0.1, 0.7)


@pytest.fixture
def run(device: torch.device) -> Run:
    return Run(
        device=open_device(DeviceConfig(device=device.type)),
        processes=Processes(Launch(), "gloo", "env://"),
    )


def draw_features(count: int, classes: int = CLASSES) -> Features:
    rng = np.random.RandomState(0)
    rows = torch.as_tensor(rng.standard_normal((count, WIDTH)).astype(np.float32), device="cpu")
    return Features(
        features=rows, labels=torch.as_tensor(rng.randint(0, classes, count), device="cpu")
    )


def build_head(classes: int = CLASSES) -> LinearHead:
    torch.manual_seed(0)
    return LinearHead(WIDTH, classes)


def train(run: Run, head: LinearHead, data: Features) -> tuple[MomentumSGD, LinearProgram]:
    """One step a rate over the whole set."""
    program, optimizer = (
        LinearProgram(head, lambda rows: rows, run.processes),
        MomentumSGD(head.parameters()),
    )
    step = run.device.compile_train(program, optimizer, 1)
    for rate in RATES:
        step(Samples(data.features, data.labels), LinearInputs(torch.tensor(rate, device="cpu")))
    return optimizer, program


@pytest.mark.usefixtures("device")
def test_a_new_layer_is_narrow_and_has_no_bias() -> None:
    torch.manual_seed(0)
    layer = LinearHead(400, 100).linear
    assert float(layer.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert abs(float(layer.weight.detach().mean())) < 2e-4
    assert layer.bias.abs().max() == 0


def test_steps_are_those_of_softmax_regression_written_out(run: Run) -> None:
    head, data = build_head(), draw_features(40)
    weight = head.linear.weight.detach().cpu().double().numpy()
    rows, truth = data.features.double().numpy(), np.eye(CLASSES)[data.labels.numpy()]
    bias, speed, losses = np.zeros(CLASSES), [0.0, 0.0], []
    for rate in RATES:
        powers = np.exp(rows @ weight.T + bias)
        chances = powers / powers.sum(axis=1, keepdims=True)
        losses.append(-np.log((chances * truth).sum(axis=1)).mean())
        error = (chances - truth) / len(rows)
        speed = [0.9 * speed[0] + error.T @ rows, 0.9 * speed[1] + error.sum(axis=0)]
        weight, bias = weight - rate * speed[0], bias - rate * speed[1]
    _, program = train(run, head, data)
    np.testing.assert_allclose(head.linear.weight.detach().cpu().numpy(), weight, atol=1e-6)
    np.testing.assert_allclose(head.linear.bias.detach().cpu().numpy(), bias, atol=1e-6)
    assert float(program.loss) == pytest.approx(sum(losses), rel=1e-5)


def test_the_update_and_its_state_are_those_of_torch(run: Run) -> None:
    ours, theirs, data = build_head(), build_head(), draw_features(40)
    optimizer, _ = train(run, ours, data)
    reference = torch.optim.SGD(theirs.parameters(), lr=1.0, momentum=0.9)
    place = theirs.linear.weight.device
    for rate in RATES:
        reference.param_groups[0]["lr"] = rate
        reference.zero_grad()
        torch.nn.functional.cross_entropy(
            theirs(data.features.to(place)), data.labels.to(place)
        ).backward()
        reference.step()
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.detach(), two.detach(), rtol=1e-5, atol=1e-7)
    state, expected = (run.device.to_host(each.state_dict()) for each in (optimizer, reference))
    assert state["param_groups"][0]["params"] == expected["param_groups"][0]["params"] == [0, 1]
    for index in (0, 1):
        torch.testing.assert_close(
            state["state"][index]["momentum_buffer"],
            expected["state"][index]["momentum_buffer"],
            rtol=1e-5,
            atol=1e-7,
        )
    torch.optim.SGD(build_head().parameters(), lr=1.0, momentum=0.9).load_state_dict(state)
    MomentumSGD(build_head().parameters()).load_state_dict(expected)


def test_another_rate_is_no_new_graph_and_no_host_read(run: Run) -> None:
    """On the simulated card, in eager mode, where each operator is a graph; the third step is the
    steady state."""
    if run.device.name != "hpu":
        pytest.skip("counts what the simulated card sees")
    head, data, seen = build_head(), draw_features(33), []  # of a size that no other test uses
    step = run.device.compile_train(
        LinearProgram(head, lambda rows: rows, run.processes), MomentumSGD(head.parameters()), 1
    )
    for rate in RATES:
        with hpu_simulator.watch() as found:
            step(
                Samples(data.features, data.labels), LinearInputs(torch.tensor(rate, device="cpu"))
            )
        seen.append(found)
    assert seen[0].new_ops
    for found in seen[2:]:
        assert not (
            found.new_ops
            or found.new_graphs
            or found.host_reads
            or found.fallbacks
            or found.float64
        )


@pytest.mark.parametrize("classes", [1, 3, 4, 5, 6])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_score_is_that_of_a_plain_loop(classes: int, batch_size: int, run: Run) -> None:
    head, data = build_head(classes), draw_features(23, classes)
    with torch.no_grad():
        head.linear.weight.mul_(50)
    found = score_head(
        run.device.compile_eval(head), data, classes=classes, batch_size=batch_size, run=run
    )
    top1 = top5 = loss = 0.0
    for row, truth in zip(data.features.numpy(), data.labels.tolist(), strict=True):
        logits = head.linear.weight.detach().cpu().numpy() @ row
        order = np.argsort(-logits).tolist()
        top1 += order[0] == truth
        top5 += truth in order[:5]
        loss += np.log(np.exp(logits).sum()) - logits[truth]
    assert found.top1 == pytest.approx(100 * top1 / 23)
    assert found.top5 == (pytest.approx(100 * top5 / 23) if classes >= 5 else None)
    assert found.loss == pytest.approx(loss / 23, rel=1e-5, abs=1e-6)
    assert ("Acc@5" in found.describe()) == ("acc5" in found.named()) == (classes >= 5)


def test_processes_count_every_image_once(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    head, data = build_head(), draw_features(5)
    settings = {"classes": CLASSES, "batch_size": 2, "run": run}
    infer = run.device.compile_eval(head)
    whole, parts = score_head(infer, data, **settings), []
    monkeypatch.setattr(run.processes, "all_reduce_sum", lambda sums: sums)
    monkeypatch.setattr(run.processes, "world_size", 7)  # two of them have none
    for rank in range(7):
        monkeypatch.setattr(run.processes, "rank", rank)
        parts.append(score_head(infer, data, **settings))
    assert sum(part.top1 for part in parts) == pytest.approx(whole.top1)
    assert sum(part.top5 or 0 for part in parts) == pytest.approx(whole.top5)
    assert sum(part.loss for part in parts) == pytest.approx(whole.loss)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(1), r"momentum_buffer must be \(\d+, \d+\) \(got \(1,\)\)"),
        (None, "lacks a momentum_buffer"),
        ([0.0], r"momentum_buffer must be a tensor \(got list\)"),
    ],
)
def test_momentum_that_does_not_fit_is_named(value: object, reason: str) -> None:
    state = MomentumSGD(build_head().parameters()).state_dict()
    state["state"][0] = {"momentum_buffer": value}
    with pytest.raises(CheckpointError, match=reason):
        MomentumSGD(build_head().parameters()).load_state_dict(state)


def test_momentum_of_a_file_gets_memory_of_its_own() -> None:
    optimizer = MomentumSGD(build_head().parameters())
    state = optimizer.state_dict()
    shape = state["state"][0]["momentum_buffer"].shape
    state["state"][0]["momentum_buffer"] = torch.ones(1).expand(shape)
    optimizer.load_state_dict(state)
    held = optimizer.state[optimizer.param_groups[0]["params"][0]]["momentum_buffer"]
    assert held.is_contiguous() and held.untyped_storage().nbytes() == held.nbytes
