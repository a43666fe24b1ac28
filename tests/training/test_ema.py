"""The teacher is the moving average of the student, parameter by parameter."""

import pytest
import torch
from torch import nn

from dino.training.ema import build_teacher, update_teacher

pytestmark = pytest.mark.usefixtures("device")


def build(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 3, bias=False))


def test_the_teacher_starts_equal_and_takes_no_gradient():
    student = build(0)
    teacher = build_teacher(build(1), student)
    ours, theirs = teacher.state_dict().values(), student.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


class Draws(nn.Module):
    """Random without a module that shows it."""

    def forward(self, images):
        return nn.functional.dropout(images, 0.5, self.training)


def test_nothing_in_the_teacher_is_random_and_batch_norm_follows_its_batch():
    parts = nn.BatchNorm1d(7), nn.Dropout(0.5), Draws()
    teacher = build_teacher(nn.Sequential(*parts), nn.Sequential(*parts))
    images = torch.randn(6, 7) + 5
    first, second = teacher(images), teacher(images)
    assert torch.equal(first, second) and first.mean().abs() < 1e-5
    assert teacher[0].running_mean.mean() > 0.1


def test_ten_updates_equal_a_loop_in_float64(relative_error):
    student, teacher = build(0), build_teacher(build(1), build(2))
    expected = [parameter.detach().double().clone() for parameter in teacher.parameters()]
    for step in range(10):
        momentum = 0.9 + 0.01 * step
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.add_(torch.randn_like(parameter))
        update_teacher(teacher, student, torch.tensor(momentum))
        for average, own in zip(expected, student.parameters(), strict=True):
            average.mul_(momentum).add_((1 - momentum) * own.detach().double())
    for parameter, average in zip(teacher.parameters(), expected, strict=True):
        assert relative_error(parameter, average) <= 1e-6


@pytest.mark.parametrize(("momentum", "source"), [(1.0, "teacher"), (0.0, "student")])
def test_momentum_one_changes_nothing_and_zero_copies_to_the_bit(momentum, source):
    networks = {"student": build(0), "teacher": build_teacher(build(1), build(2))}
    expected = [parameter.detach().clone() for parameter in networks[source].parameters()]
    update_teacher(networks["teacher"], networks["student"], torch.tensor(momentum))
    assert all(
        torch.equal(a, b) for a, b in zip(networks["teacher"].parameters(), expected, strict=True)
    )


def test_buffers_and_the_student_stay():
    student, teacher = build(0), build_teacher(build(1), build(2))
    student(torch.randn(4, 5))
    before = [value.clone() for value in [*teacher.buffers(), *student.state_dict().values()]]
    update_teacher(teacher, student, torch.tensor(0.5))
    after = [*teacher.buffers(), *student.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
