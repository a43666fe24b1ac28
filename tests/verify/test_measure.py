"""What is counted in a step: what computes, by phase, and what the host waits for."""

import torch

from dino.verify.measure import StepCounts


def test_views_and_allocations_are_no_launches():
    tensor = torch.ones(4, 6)
    with StepCounts() as counts:
        torch.empty(3)
        tensor.t().reshape(2, 12)[0].detach()
        assert (
            counts.launches.total() == 1
        )  # the copy that this reshape of a transposed tensor needs
        tensor.add_(1).sum()
    assert counts.launches.total() == 3 and counts.reads == 0


def test_launches_belong_to_phases():
    with StepCounts() as counts:
        torch.ones(2) + 1
        counts.enter("loss")
        torch.ones(2).mul(2)
        counts.enter("step")
        torch.zeros(2)
    assert dict(counts.launches) == {"step": 3, "loss": 2}


def test_values_that_the_host_reads_are_counted():
    tensor = torch.tensor([1.0, 0.0])
    with StepCounts() as counts:
        float(tensor[0])
        tensor.nonzero()
    assert counts.reads == 2


def test_backward_passes_are_counted():
    weight = torch.ones(3, requires_grad=True)
    with StepCounts() as counts:
        (weight * 2).sum().backward()
    assert counts.launches.total() >= 4
