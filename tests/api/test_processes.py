"""Under a launcher the functions join the processes, one call after the other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

import dino
from dino.runtime import distributed
from dino.runtime.launch import Launch
from tests.api.tiny import Pictures, load_state
from tests.running import run_pair


def test_two_processes_embed_train_continue_and_embed_again(weights: Path, tmp_path: Path) -> None:
    """No call finds what an earlier one told the others: whether all are there, and at which
    iteration rank 0 is."""
    ended = run_pair(tmp_path, "tests.api.pair", weights, tmp_path)
    assert [each.code for each in ended] == [0, 0], ended
    expected = dino.embed(dino.load(weights), Pictures(5), device="cpu", num_workers=0).vectors
    for rank in range(2):
        first, again, epochs, names = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert torch.allclose(first, expected, atol=1e-5) and torch.equal(first, again)
        assert epochs == 2 and "cls_token" in names
    identity = load_state(tmp_path / "run")["resume"]["identity"]
    assert (identity["world"], identity["iteration"]) == (2, 6)
    assert [each.text.count("only their number is checked") for each in ended] == [
        2,
        0,
    ]  # rank 0's, in each call


def test_a_later_call_does_not_read_what_an_earlier_one_wrote(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torchrun's store outlives a call: an old iteration, or an old wish to stop, would end the
    next one."""
    opened = [dist.HashStore(), dist.HashStore()]
    left = iter(opened)
    monkeypatch.setattr(distributed, "_met", {})
    monkeypatch.setattr(distributed, "_open_store", lambda *_: next(left))
    place = Launch(rank=0, world_size=2)
    first, second, third = (distributed._meet(place, "env://") for _ in range(3))
    first.set("iteration", "0")
    second.set("iteration", "3")
    assert [store.get("iteration") for store in (first, second)] == [b"0", b"3"]
    assert not distributed.is_written(third, "iteration")
    assert first is opened[0] and second.underlying_store is first  # one server for all of them
    assert distributed._meet(place, "tcp://other:1") is opened[1]
