"""The loss against the original's numbers and against the paper written out as loops."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.training.loss import (
    compute_feature_spread,
    compute_loss,
    compute_targets,
    diagnose_collapse,
    update_centre,
)
from dino.training.schedules import compute_teacher_temperature

pytestmark = pytest.mark.usefixtures("device")


def scalar(value):
    return torch.tensor(value, dtype=torch.float32)


def softmax(row):
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def loss_by_loops(student, teacher, centre, temperature, images):
    """Equation 2 of the paper: every pair of a teacher view and another student view, image by image, in float64."""
    student, teacher, centre = (np.asarray(x, dtype=np.float64) for x in (student, teacher, centre))
    views, total, pairs = len(student) // images, 0.0, 0
    for teacher_view in range(2):
        for student_view in range(views):
            if teacher_view == student_view:
                continue
            entropies = []
            for image in range(images):
                target = softmax((teacher[teacher_view * images + image] - centre[0]) / temperature)
                guess = softmax(student[student_view * images + image] / 0.1)
                entropies.append(-(target * np.log(guess)).sum())
            total += np.mean(entropies)
            pairs += 1
    return total / pairs


def test_loss_gradient_and_centre_are_those_of_the_original(golden, draw, relative_error):
    arrays = golden("loss")
    temperatures = compute_teacher_temperature(start=0.04, final=0.07, warmup_epochs=2, epochs=10)
    centre = torch.zeros(1, 256)
    for call in range(3):
        student = draw(10 + call, 40, 256).requires_grad_()
        temperature = scalar(temperatures[int(arrays[f"{call}/epoch"])])
        targets = compute_targets(draw(20 + call, 8, 256), centre, temperature)
        loss = compute_loss(student, targets.probabilities)
        loss.backward()
        centre = update_centre(centre, targets.batch_centre)
        assert relative_error(loss.detach(), arrays[f"{call}/loss"]) <= 1e-5
        assert relative_error(student.grad, arrays[f"{call}/ds"]) <= 1e-5
        assert relative_error(centre, arrays[f"{call}/center"]) <= 1e-5


def test_two_views_give_the_numbers_of_the_original(golden, draw, relative_error):
    arrays = golden("loss")
    student = draw(30, 8, 256).requires_grad_()
    targets = compute_targets(draw(31, 8, 256), torch.zeros(1, 256), scalar(0.04))
    loss = compute_loss(student, targets.probabilities)
    loss.backward()
    assert relative_error(loss.detach(), arrays["two/loss"]) <= 1e-5
    assert relative_error(student.grad, arrays["two/ds"]) <= 1e-5


@settings(max_examples=40, deadline=None)
@given(
    images=st.integers(1, 5),
    views=st.integers(2, 12),
    prototypes=st.sampled_from([2, 3, 17, 64]),
    temperature=st.floats(0.02, 1.0),
    seed=st.integers(0, 10_000),
)
def test_loss_equals_the_loops_for_any_number_of_views(images, views, prototypes, temperature, seed):
    rng = np.random.default_rng(seed)
    student = rng.standard_normal((views * images, prototypes)).astype(np.float32)
    teacher = rng.standard_normal((2 * images, prototypes)).astype(np.float32)
    centre = rng.standard_normal((1, prototypes)).astype(np.float32)
    targets = compute_targets(torch.as_tensor(teacher), torch.as_tensor(centre), scalar(temperature))
    loss = compute_loss(torch.as_tensor(student), targets.probabilities)
    assert float(loss) == pytest.approx(loss_by_loops(student, teacher, centre, temperature, images), rel=1e-4)


@pytest.mark.parametrize("traced", [False, True])
@settings(max_examples=40, deadline=None)
@given(images=st.integers(1, 4), views=st.integers(2, 6), seed=st.integers(0, 10_000), scale=st.floats(0.1, 10.0))
def test_the_gradient_is_that_of_the_plain_formula(traced, images, views, seed, scale):
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):
        student = torch.randn(views * images, 11, generator=generator)
        teacher = torch.randn(2 * images, 11, generator=generator)
    targets = compute_targets(torch.as_tensor(teacher.numpy()), torch.zeros(1, 11), scalar(0.2)).probabilities
    logits = torch.as_tensor(student.numpy()).requires_grad_()
    (scale * compute_loss(logits, targets, traced=traced)).backward()
    plain = student.double().requires_grad_()
    logs = F.log_softmax(plain / 0.1, dim=-1).unflatten(0, (views, images))
    pairs = [(one, two) for one in range(2) for two in range(views) if one != two]
    expected = targets.cpu().double()
    (-scale * sum((expected[one] * logs[two]).sum(-1).mean() for one, two in pairs) / len(pairs)).backward()
    torch.testing.assert_close(logits.grad.cpu().double(), plain.grad, rtol=1e-4, atol=1e-5)


def test_targets_say_what_they_promise():
    torch.manual_seed(0)
    logits = torch.randn(6, 9, requires_grad=True)
    targets = compute_targets(logits, torch.zeros(1, 9), scalar(0.5))
    rows = targets.probabilities.flatten(0, 1).double()
    assert targets.probabilities.shape == (2, 3, 9)
    assert not targets.probabilities.requires_grad
    torch.testing.assert_close(targets.probabilities.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(targets.batch_centre, logits.detach().mean(0, keepdim=True))
    entropy = np.mean([float(-(row * row.log()).sum()) for row in rows])
    divergence = np.mean([float((row * (row / rows.mean(0)).log()).sum()) for row in rows])
    assert float(targets.entropy) == pytest.approx(entropy, rel=1e-5)
    assert float(targets.divergence) == pytest.approx(divergence, rel=1e-5)


def test_the_first_rows_are_the_first_view():
    logits = torch.full((4, 3), -5.0)
    logits[[0, 1, 2, 3], [0, 0, 1, 2]] = 5.0
    targets = compute_targets(logits, torch.zeros(1, 3), scalar(0.1))
    assert targets.probabilities.argmax(-1).tolist() == [[0, 0], [1, 2]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_in_fp32(dtype):
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 16).to(dtype), torch.randn(4, 16).to(dtype)
    targets = compute_targets(teacher, torch.zeros(1, 16), scalar(0.04))
    loss = compute_loss(student, targets.probabilities)
    same = compute_targets(teacher.float(), torch.zeros(1, 16), scalar(0.04))
    assert (loss.dtype, targets.probabilities.dtype, targets.batch_centre.dtype) == (torch.float32,) * 3
    assert torch.equal(loss, compute_loss(student.float(), same.probabilities))


def test_huge_logits_stay_finite():
    targets = compute_targets(torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.zeros(1, 2), scalar(0.04))
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = compute_loss(student, targets.probabilities)
    loss.backward()
    assert all(torch.isfinite(x).all() for x in (loss, student.grad, targets.entropy, targets.divergence))


def test_the_centre_follows_slowly():
    assert torch.allclose(update_centre(torch.tensor([[1.0]]), torch.tensor([[2.0]])), torch.tensor([[1.1]]))


def measures(logits, temperature=0.04, centre=None):
    centre = torch.zeros(1, logits.shape[1]) if centre is None else centre
    targets = compute_targets(logits, centre, scalar(temperature))
    return {"entropy": float(targets.entropy), "divergence": float(targets.divergence), "prototypes": logits.shape[1]}


@pytest.mark.parametrize("prototypes", [64, 1024])
def test_uniform_outputs_are_named(prototypes):
    torch.manual_seed(0)
    text = diagnose_collapse(**measures(1e-3 * torch.randn(32, prototypes)))
    assert text.startswith("uniform collapse") and "--teacher_temp" in text


@pytest.mark.parametrize("prototypes", [64, 1024])
def test_constant_outputs_are_named(prototypes):
    torch.manual_seed(0)
    same = torch.randn(1, prototypes).expand(32, -1) + 1e-5 * torch.randn(32, prototypes)
    text = diagnose_collapse(**measures(same))
    assert text.startswith("constant collapse") and "--momentum_teacher" in text


@pytest.mark.parametrize("prototypes", [64, 1024])
@pytest.mark.parametrize("scale", [0.1, 0.3, 1.0])
def test_healthy_outputs_are_not_named(prototypes, scale):
    torch.manual_seed(0)
    assert diagnose_collapse(**measures(scale * torch.randn(32, prototypes))) is None


def test_no_measure_is_no_diagnosis():
    assert diagnose_collapse(entropy=math.nan, divergence=math.nan, prototypes=64) is None


def test_feature_spread_is_zero_for_equal_and_near_one_for_scattered_features():
    torch.manual_seed(0)
    assert float(compute_feature_spread(torch.randn(1, 64).expand(32, -1))) == pytest.approx(0.0, abs=1e-6)
    assert float(compute_feature_spread(7 * torch.randn(4096, 64))) == pytest.approx(1.0, abs=0.02)
