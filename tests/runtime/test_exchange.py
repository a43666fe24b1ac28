"""Gradients leave in order while the backward pass runs, and come back as the mean."""

import pytest
import torch
from torch import nn

from dino.devices.eager import split_backend
from dino.runtime.exchange import GradientExchange, fill_buckets

pytestmark = pytest.mark.usefixtures("device")


class Other:
    """A second process whose gradients are all 0, and what happened in which order."""

    def __init__(self, sums=None):
        self.events, self.sizes = [], []

    def average(self, flat):
        self.events.append("start")
        self.sizes.append(flat.numel())

        def wait():
            self.events.append("wait")
            return flat / 2

        return wait


def build(events, bucket_bytes=4 * 30):
    torch.manual_seed(0)
    network = nn.Sequential(*(nn.Linear(5, 5) for _ in range(3)))
    other = Other()
    exchange = GradientExchange(network.parameters(), other.average, bucket_bytes)
    for place, layer in enumerate(network):
        layer.register_full_backward_hook(lambda *_, place=place: other.events.append(place))
    return network, other, exchange


def test_buckets_are_filled_in_order_and_closed_when_they_are_full():
    parameters = [nn.Parameter(torch.zeros(count)) for count in (10, 20, 1, 40, 5)]
    buckets = fill_buckets(parameters, 4 * 30)
    assert [[part.numel() for part in bucket] for bucket in buckets] == [[10, 20], [1, 40], [5]]
    assert fill_buckets([], 100) == []


def test_a_bucket_leaves_while_the_backward_pass_still_runs():
    network, other, exchange = build([])
    exchange.begin()
    network(torch.ones(2, 5)).sum().backward()
    assert other.events.index("start") < other.events.index(0), "the first layer is the last"
    assert other.events.count("start") == 3 and "wait" not in other.events
    exchange.finish()
    assert other.events[-3:] == ["wait"] * 3
    assert other.sizes == [30, 30, 30]


def test_every_gradient_becomes_the_mean_of_all_processes():
    network, _, exchange = build([])
    for last in (False, True):
        if last:
            exchange.begin()
        network(torch.ones(2, 5)).sum().backward()
    expected = [parameter.grad / 2 for parameter in network.parameters()]
    exchange.finish()
    for parameter, mean in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, mean, rtol=0, atol=0)


def test_nothing_leaves_before_the_last_backward_pass():
    network, other, _ = build([])
    network(torch.ones(2, 5)).sum().backward()
    assert "start" not in other.events


def test_missing_gradients_count_as_zero_and_the_order_stays():
    """Another process may have them: all processes start the same collectives."""
    network, other, exchange = build([])
    exchange.begin()
    network[1](torch.ones(2, 5)).sum().backward()
    assert "start" not in other.events, "the bucket before it is not complete"
    exchange.finish()
    assert other.sizes == [30, 30, 30]
    assert not network[0].weight.grad.any() and network[1].weight.grad.any()


def test_frozen_parameters_stay_out():
    network = nn.Linear(5, 5)
    network.weight.requires_grad_(False)
    exchange = GradientExchange(network.parameters(), Other().average, 1)
    assert [len(bucket) for bucket in exchange.buckets] == [1]


def test_without_parameters_nothing_happens():
    exchange = GradientExchange()
    exchange.begin()
    exchange.finish()


def test_a_compiled_network_also_gives_its_gradients_part_by_part():
    """The graphs of the backward pass run one after the other; the exchange begins between."""
    network = nn.Sequential(*(nn.Linear(5, 5, device="cpu") for _ in range(4)))
    other = Other()
    exchange = GradientExchange(network.parameters(), other.average, 4 * 60)
    compiled = torch.compile(network, backend=split_backend("aot_eager", 4 * 60))
    inputs = torch.ones(2, 5, device="cpu", requires_grad=True)
    inputs.register_hook(lambda _: other.events.append("end"))
    exchange.begin()
    compiled(inputs).sum().backward()
    assert other.events == ["start", "end", "start"] or other.events == ["start", "start", "end"]
    first = network[0].weight.grad.clone()
    exchange.finish()
    torch.testing.assert_close(network[0].weight.grad, first / 2, rtol=0, atol=0)
