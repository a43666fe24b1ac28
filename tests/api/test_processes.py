"""Under a launcher the functions join the processes, one call after the other."""

from __future__ import annotations

from pathlib import Path

import torch

import dino
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
