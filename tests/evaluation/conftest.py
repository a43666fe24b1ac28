"""What the tests of searches share: weights that tell images apart, and the lines that a command
prints."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dino.models.registry import build_backbone
from tests import hpu_simulator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def lively_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small network, drawn wide enough that its features differ from image to
    image."""
    torch.manual_seed(0)
    module = build_backbone("vit_mini", patch_size=16, img_size=64)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "checkpoint.pth"
    torch.save(
        {"teacher": module.state_dict(), "args": {"arch": "vit_mini", "patch_size": 16}}, path
    )
    return path


@pytest.fixture
def score_lines(
    capsys: pytest.CaptureFixture[str], lively_weights: Path
) -> Callable[[ModuleType, object], list[str]]:
    """``score_lines(script, *words)`` runs a script on the CPU with those weights; gives its result
    lines."""

    def run(script: ModuleType, *words: object) -> list[str]:
        capsys.readouterr()
        defaults = ("--device", "cpu", "--num_workers", "0", "--pretrained_weights", lively_weights)
        script.main([*map(str, defaults), *map(str, words)])
        return find_results(capsys.readouterr().out)

    return run


def find_results(text: str) -> list[str]:
    return [
        line
        for line in text.splitlines()
        if line.startswith((">> ", "eval on ")) or "classifier result" in line
    ]


@pytest.fixture
def launched_lines(lively_weights: Path) -> Callable[..., list[str]]:
    """``launched_lines(script, *words)``: the reference's line for eight cards, with two simulated
    ones."""
    if hpu_simulator.why_unavailable():
        pytest.skip(f"no simulated hpu: {hpu_simulator.why_unavailable()}")

    def run(script: str, *words: object) -> list[str]:
        environment = os.environ | {
            "PYTHONPATH": str(hpu_simulator.PACKAGE),
            "OMP_NUM_THREADS": "1",
        }
        launcher = ("-m", "torch.distributed.launch", "--nproc_per_node=2")
        defaults = ("--pretrained_weights", lively_weights, "--num_workers", 1)
        command = [sys.executable, *launcher, script, *map(str, defaults), *map(str, words)]
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
        )
        assert ended.returncode == 0, ended.stderr
        assert "device: hpu, fp32" in ended.stdout and "2 processes" in ended.stdout
        return find_results(ended.stdout)

    return run


def judge_plainly(
    ranked: list[int], positives: set[int], junk: set[int]
) -> tuple[float, list[float]]:
    """Walk down the list as a person would, passing over junk."""
    area, found, seen, hits = 0.0, 0, 0, []
    for image in ranked:
        if image in positives:
            before = found / seen if seen else 1.0
            found += 1
            area += (before + found / (seen + 1)) / 2 / len(positives)
            hits.append(seen)
        if image in positives or image not in junk:
            seen += 1
    depths = [min(depth, hits[-1] + 1) for depth in (1, 5, 10)]
    return area, [sum(hit < depth for hit in hits) / depth for depth in depths]
