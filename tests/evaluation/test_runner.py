"""A runner refuses what it could not report, loads with rank 0 first, extracts on its own run and
reports once."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from dino.config import ReportConfig
from dino.data.config import DataConfig
from dino.data.image_source import ImageSource
from dino.devices.cpu import CpuDevice
from dino.errors import OptionError
from dino.evaluation import runner as rooms
from dino.evaluation.config import EvaluationConfig
from dino.evaluation.features import extract_features
from dino.evaluation.runner import Runner
from dino.models.config import BackboneConfig, WeightsConfig
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from dino.weights.load import TrainedBackbone


@pytest.fixture
def run() -> Run:
    return Run(device=CpuDevice("fp32"), processes=Processes(Launch(), "gloo", "env://"))


def build_config(json_path: Path | None = None) -> EvaluationConfig:
    report = ReportConfig(json=None if json_path is None else str(json_path))
    return EvaluationConfig(report=report, data=DataConfig(batch_size_per_device=2, num_workers=0))


def test_a_result_that_could_not_be_written_is_refused_at_once(run: Run, tmp_path: Path) -> None:
    with pytest.raises(
        OptionError,
        match="`json` .* cannot be written; name a file in an existing, writable folder",
    ):
        Runner(build_config(tmp_path / "nowhere" / "result.json"), run)


def test_images_are_fed_as_the_settings_say(run: Run) -> None:
    reading = Runner(build_config(), run, keep_on_device=True, max_batches=9).reading
    assert (reading.batch_size, reading.workers, reading.keep_on_device, reading.max_batches) == (
        2,
        0,
        True,
        9,
    )
    reading = Runner(build_config(), run).reading
    assert (reading.keep_on_device, reading.max_batches) == (False, None)


@pytest.mark.parametrize(("rank", "order"), [(0, ["load", "barrier"]), (1, ["barrier", "load"])])
def test_rank_0_loads_first(
    rank: int, order: list[str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    monkeypatch.setattr(run.processes, "rank", rank)
    monkeypatch.setattr(run.processes, "barrier", lambda: done.append("barrier"))
    monkeypatch.setattr(
        rooms, "load_backbone", lambda *settings, published, **_: done.append("load") or published
    )
    published = {("vit_small", 16): "file"}
    assert Runner(build_config(), run).load_backbone(published, center_crops=False) == published
    assert done == order


def test_a_network_of_one_size_is_refused_at_another_before_images_are_read(run: Run) -> None:
    config = replace(
        build_config(),
        backbone=BackboneConfig(arch="timm:test_vit_relpos"),
        weights=WeightsConfig(random_weights=True),
    )
    runner = Runner(config, run)
    assert runner.load_backbone(center_crops=False).module.embed_dim == 96
    with pytest.raises(OptionError, match=r"^`arch` timm:test_vit_relpos cannot take 224-pixel"):
        runner.load_backbone()


def test_features_are_those_of_its_run_and_reading(run: Run, tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (20, 18), (80 * number, 200, 10)).save(tmp_path / f"{number}.png")
    source = ImageSource(root=tmp_path, names=("0.png", "1.png", "2.png"))
    backbone = TrainedBackbone(
        module=nn.Flatten(), arch="flat", patch_size=1, image_size=8, in_chans=3, normalization=None
    )
    runner = Runner(build_config(), run)
    expected = extract_features(backbone, source, run, runner.reading, normalize=False)
    assert torch.equal(
        runner.extract(backbone, source, normalize=False).features, expected.features
    )


def test_rank_0_alone_reports(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    runner = Runner(build_config(path), run)
    with monkeypatch.context() as patch:
        patch.setattr(run.processes, "rank", 1)
        runner.report({"map": 0.5})
    assert not path.exists()
    runner.report({"map": 0.5})
    assert json.loads(path.read_text()) == {"map": 0.5}
