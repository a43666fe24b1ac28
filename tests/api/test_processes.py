"""Under torchrun the functions join the processes, one call after the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import dino
from tests.api.tiny import Pictures, load_state

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import os, sys
import torch
import dino
from tests.api.tiny import RUN, Pictures

torch.set_num_threads(1)
weights, folder = sys.argv[1:]
backbone = dino.load(weights)
first = dino.embed(backbone, Pictures(5), device="cpu", num_workers=0).vectors
for epochs in (1, 2):
    settings = {**RUN, "batch_size_per_device": 2, "epochs": epochs}
    result = dino.pretrain(Pictures(), f"{folder}/run", **settings)
again = dino.embed(backbone, Pictures(5), device="cpu", num_workers=0).vectors
names = [name for name, _ in result.teacher.named_parameters()]
torch.save([first, again, len(result.history), names], f"{folder}/{os.environ['RANK']}.pth")
"""


def test_two_processes_embed_train_continue_and_embed_again(weights: Path, tmp_path: Path) -> None:
    """No call finds what an earlier one told the others: whether all are there, and at which iteration rank 0 is."""
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    words = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    ended = subprocess.run(
        [sys.executable, *words, str(tmp_path / "script.py"), str(weights), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    expected = dino.embed(dino.load(weights), Pictures(5), device="cpu", num_workers=0).vectors
    for rank in range(2):
        first, again, epochs, names = torch.load(tmp_path / f"{rank}.pth", weights_only=True)
        assert torch.allclose(first, expected, atol=1e-5) and torch.equal(first, again)
        assert epochs == 2 and "cls_token" in names
    identity = load_state(tmp_path / "run")["resume"]["identity"]
    assert (identity["world"], identity["iteration"]) == (2, 6)
    assert ended.stderr.count("only their number is checked") == 2  # rank 0's, in each call
