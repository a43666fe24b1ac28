"""The loss against the original's numbers and against the paper written out as loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dino.devices.ipu import traced
from dino.training.chunks import Chunks, choose_chunks
from dino.training.loss import (
    STUDENT_TEMPERATURE,
    compute_feature_spread,
    compute_loss,
    compute_targets,
    update_center,
)
from dino.training.schedules import compute_teacher_temperature

pytestmark = pytest.mark.usefixtures("device")


def scalar(value):
    return torch.tensor(value, dtype=torch.float32)


def softmax(row):
    shifted = np.exp(row - row.max())
    return shifted / shifted.sum()


def loss_of_logits_by_chunks(logits, targets, rows=3):
    """The loss through a last layer that changes nothing: its vectors are the logits, and so are
    their gradients."""
    count = logits.shape[1]
    return compute_loss(
        logits, torch.eye(count), torch.ones(count, 1), targets, chunks=Chunks(rows, rows)
    )


def compute_loss_of_logits(logits, targets):
    """The plain formula, as IPUs get it."""
    return traced.compute_loss_of_logits(logits, targets, STUDENT_TEMPERATURE)


BOTH = pytest.mark.parametrize(
    "loss_of", [compute_loss_of_logits, loss_of_logits_by_chunks], ids=["plain", "chunks"]
)


def loss_by_loops(student, teacher, center, temperature, images):
    """Equation 2 of the paper: every pair of a teacher view and another student view, image by
    image, in float64."""
    student, teacher, center = (np.asarray(x, dtype=np.float64) for x in (student, teacher, center))
    views, total, pairs = len(student) // images, 0.0, 0
    for teacher_view in range(2):
        for student_view in range(views):
            if teacher_view == student_view:
                continue
            entropies = []
            for image in range(images):
                target = softmax((teacher[teacher_view * images + image] - center[0]) / temperature)
                guess = softmax(student[student_view * images + image] / 0.1)
                entropies.append(-(target * np.log(guess)).sum())
            total += np.mean(entropies)
            pairs += 1
    return total / pairs


@BOTH
def test_loss_gradient_and_center_are_those_of_the_original(loss_of, golden, draw, relative_error):
    arrays = golden("loss")
    temperatures = compute_teacher_temperature(start=0.04, final=0.07, warmup_epochs=2, epochs=10)
    center = torch.zeros(1, 256)
    for call in range(3):
        student = draw(10 + call, 40, 256).requires_grad_()
        temperature = scalar(temperatures[int(arrays[f"{call}/epoch"])])
        targets = compute_targets(draw(20 + call, 8, 256), center, temperature)
        loss = loss_of(student, targets.probabilities)
        loss.backward()
        center = update_center(center, targets.batch_center)
        assert relative_error(loss.detach(), arrays[f"{call}/loss"]) <= 1e-5
        assert relative_error(student.grad, arrays[f"{call}/ds"]) <= 1e-5
        assert relative_error(center, arrays[f"{call}/center"]) <= 1e-5


@BOTH
def test_two_views_give_the_numbers_of_the_original(loss_of, golden, draw, relative_error):
    arrays = golden("loss")
    student = draw(30, 8, 256).requires_grad_()
    targets = compute_targets(draw(31, 8, 256), torch.zeros(1, 256), scalar(0.04))
    loss = loss_of(student, targets.probabilities)
    loss.backward()
    assert relative_error(loss.detach(), arrays["two/loss"]) <= 1e-5
    assert relative_error(student.grad, arrays["two/ds"]) <= 1e-5


@BOTH
@settings(max_examples=40)
@given(
    images=st.integers(1, 5),
    views=st.integers(2, 12),
    prototypes=st.sampled_from([2, 3, 17, 64]),
    temperature=st.floats(0.02, 1.0),
    seed=st.integers(0, 10_000),
)
def test_loss_equals_the_loops_for_any_number_of_views(
    loss_of, images, views, prototypes, temperature, seed
):
    rng = np.random.default_rng(seed)
    student = rng.standard_normal((views * images, prototypes)).astype(np.float32)
    teacher = rng.standard_normal((2 * images, prototypes)).astype(np.float32)
    center = rng.standard_normal((1, prototypes)).astype(np.float32)
    targets = compute_targets(
        torch.as_tensor(teacher), torch.as_tensor(center), scalar(temperature)
    )
    loss = loss_of(torch.as_tensor(student), targets.probabilities)
    assert float(loss) == pytest.approx(
        loss_by_loops(student, teacher, center, temperature, images), rel=1e-4, abs=1e-6
    )


@settings(max_examples=40)
@given(
    images=st.integers(1, 4),
    views=st.integers(2, 6),
    rows=st.integers(1, 20),
    block=st.integers(1, 11),
    seed=st.integers(0, 10_000),
    scale=st.floats(0.1, 10.0),
)
def test_the_gradients_are_those_of_the_plain_formula(images, views, rows, block, seed, scale):
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):
        plain = [
            torch.randn(*shape, generator=generator)
            for shape in ((views * images, 5), (11, 5), (11, 1))
        ]
        teacher = torch.randn(2 * images, 11, generator=generator)
    ours = [torch.as_tensor(part.numpy()).requires_grad_() for part in plain]
    targets = compute_targets(
        torch.as_tensor(teacher.numpy()), torch.zeros(1, 11), scalar(0.2)
    ).probabilities
    loss = compute_loss(*ours, targets, chunks=Chunks(rows, block))
    (scale * loss).backward()
    plain = [part.double().requires_grad_() for part in plain]
    vectors, weight_v, weight_g = plain
    logs = F.log_softmax(vectors @ (F.normalize(weight_v) * weight_g).t() / 0.1, dim=-1).unflatten(
        0, (views, images)
    )
    pairs = [(one, two) for one in range(2) for two in range(views) if one != two]
    expected = targets.cpu().double()
    wanted = -sum((expected[one] * logs[two]).sum(-1).mean() for one, two in pairs) / len(pairs)
    (scale * wanted).backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-4, abs=1e-5)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one.grad.cpu().double(), other.grad, rtol=1e-4, atol=1e-4)


def test_float16_gradients_stay_finite_where_all_agree_on_one_prototype():
    images = 512
    vectors, weight_v = (
        torch.full((10 * images, 8), 8**-0.5, requires_grad=True),
        torch.randn(6, 8, requires_grad=True),
    )
    targets = torch.zeros(2, images, 6).index_fill(2, torch.tensor([3]), 1.0)
    with torch.autocast(vectors.device.type, dtype=torch.float16):
        loss = compute_loss(vectors, weight_v, torch.ones(6, 1), targets)
    loss.backward()
    assert vectors.grad.isfinite().all() and weight_v.grad.isfinite().all()


def test_what_does_not_learn_gets_no_gradient():
    vectors, weight_v = torch.randn(8, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    weight_g = torch.ones(7, 1)
    loss = compute_loss(vectors, weight_v, weight_g, torch.full((2, 2, 7), 1 / 7))
    loss.backward()
    assert weight_g.grad is None and vectors.grad is not None and weight_v.grad is not None
    with torch.no_grad():
        assert torch.equal(
            compute_loss(vectors, weight_v, weight_g, torch.full((2, 2, 7), 1 / 7)), loss
        )


def test_gradients_serve_one_backward_pass():
    vectors = torch.randn(8, 5, requires_grad=True)
    loss = compute_loss(vectors, torch.eye(5), torch.ones(5, 1), torch.full((2, 2, 5), 0.2))
    loss.backward(retain_graph=True)
    with pytest.raises(TypeError):
        loss.backward()


def test_no_more_than_a_chunk_of_logits_exists_at_a_time():
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.extend(
                part.numel() for part in tree_leaves(result) if isinstance(part, torch.Tensor)
            )
            return result

    vectors, weight_v = (
        torch.randn(4 * 12, 8, requires_grad=True),
        torch.randn(100, 8, requires_grad=True),
    )
    with Watch():
        loss = compute_loss(
            vectors,
            weight_v,
            torch.ones(100, 1),
            torch.full((2, 4, 100), 0.01),
            chunks=Chunks(6, 100),
        )
        loss.backward()
    assert max(sizes) == 8 * 100  # prototypes, targets of both views; of logits at most 6 x 100


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gradients_are_near_those_of_fp32(dtype):
    torch.manual_seed(0)
    vectors, weight_v = F.normalize(torch.randn(24, 16), dim=-1), torch.randn(5000, 16)
    targets = compute_targets(
        10 * torch.randn(8, 5000), torch.zeros(1, 5000), scalar(0.5)
    ).probabilities
    found = []
    for enabled in (False, True):
        given = [part.clone().requires_grad_() for part in (vectors, weight_v)]
        with torch.autocast(vectors.device.type, dtype=dtype, enabled=enabled):
            loss = compute_loss(*given, torch.ones(5000, 1), targets)
        loss.backward()
        found.append([loss.detach(), *(part.grad for part in given)])
        assert {part.dtype for part in found[-1]} == {torch.float32}
    for wanted, ours in zip(*found, strict=True):
        assert float((ours - wanted).norm() / wanted.norm()) < (
            0.01 if dtype == torch.bfloat16 else 0.002
        )


def test_targets_say_what_they_promise():
    torch.manual_seed(0)
    logits = torch.randn(6, 9, requires_grad=True)
    targets = compute_targets(logits, torch.zeros(1, 9), scalar(0.5))
    rows = targets.probabilities.flatten(0, 1).double()
    assert targets.probabilities.shape == (2, 3, 9)
    assert not targets.probabilities.requires_grad
    torch.testing.assert_close(targets.probabilities.sum(-1), torch.ones(2, 3))
    torch.testing.assert_close(targets.batch_center, logits.detach().mean(0, keepdim=True))
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
    loss = compute_loss_of_logits(student, targets.probabilities)
    same = compute_targets(teacher.float(), torch.zeros(1, 16), scalar(0.04))
    assert (loss.dtype, targets.probabilities.dtype, targets.batch_center.dtype) == (
        torch.float32,
    ) * 3
    assert torch.equal(loss, compute_loss_of_logits(student.float(), same.probabilities))


@BOTH
def test_huge_logits_stay_finite(loss_of):
    targets = compute_targets(
        torch.tensor([[1e4, -1e4], [-1e4, 1e4]]), torch.zeros(1, 2), scalar(0.04)
    )
    student = torch.tensor([[1e4, -1e4], [-1e4, 1e4]], requires_grad=True)
    loss = loss_of(student, targets.probabilities)
    loss.backward()
    assert all(
        torch.isfinite(x).all() for x in (loss, student.grad, targets.entropy, targets.divergence)
    )


def test_the_center_follows_slowly():
    assert torch.allclose(
        update_center(torch.tensor([[1.0]]), torch.tensor([[2.0]])), torch.tensor([[1.1]])
    )


def test_feature_spread_is_zero_for_equal_and_near_one_for_scattered_features():
    torch.manual_seed(0)
    assert float(compute_feature_spread(torch.randn(1, 64).expand(32, -1))) == pytest.approx(
        0.0, abs=1e-6
    )
    assert float(compute_feature_spread(7 * torch.randn(4096, 64))) == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prototypes_in_parts_change_no_bit(dtype):
    generator = torch.Generator().manual_seed(0)
    vectors, weight_v = (torch.randn(rows, 32, generator=generator) for rows in (4 * 8, 1000))
    weight_g = torch.rand(1000, 1, generator=generator) + 0.5
    targets = torch.randn(2, 8, 1000, generator=generator).softmax(dim=-1)

    def run(part):
        parts = [part.clone().requires_grad_() for part in (vectors, weight_v, weight_g)]
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = compute_loss(*parts, targets, chunks=Chunks(10, part))
        loss.backward()
        return [loss.detach(), *(tensor.grad for tensor in parts)]

    for whole, in_parts in zip(run(1000), run(96), strict=True):
        assert torch.equal(whole, in_parts)


def test_a_cache_holds_a_part_of_the_prototypes_and_a_card_all():
    assert choose_chunks(torch.empty(65536, 256), 1 << 25) == Chunks(128, 4096)
    assert choose_chunks(torch.empty(65536, 256), 0) == Chunks(128, 65536)  # memory unknown
    assert choose_chunks(torch.empty(1024, 256), 1 << 25) == Chunks(8192, 1024)
    assert choose_chunks(torch.empty(65536, 256), 96 * 10**9 // 64) == Chunks(5722, 65536)
