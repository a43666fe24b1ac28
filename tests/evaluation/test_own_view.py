"""Scores without labels: their values on features made by hand, and the same from two processes."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dino.data.crops import CropRecipe
from dino.data.photometric import Normalization
from dino.data.sources import open_training_source
from dino.devices import open_device
from dino.devices.config import DeviceConfig
from dino.evaluation.features import LoaderConfig
from dino.evaluation.own_view import OwnViews, compute_rankme, score_retrieval
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from tests.running import SERVER, make_images


def test_a_view_finds_the_other_view_of_its_image_or_does_not() -> None:
    views = torch.eye(4).repeat_interleave(2, dim=0) + 0.01  # both views alike
    assert score_retrieval(views.unflatten(0, (4, 2))) == 100
    views[1] = views[2] * torch.tensor([1.0, 2.0, 1.0, 1.0])  # of image 0, and near image 1
    assert score_retrieval(views.unflatten(0, (4, 2))) == 100 * 6 / 8
    assert score_retrieval(torch.ones(4, 2, 3)) == 100 * 2 / 8  # all alike: all find the first


def test_chance_is_one_of_all_other_views() -> None:
    features = torch.randn(400, 2, 64, generator=torch.Generator().manual_seed(0))
    assert score_retrieval(features) < 1.5  # 1 of 799 is 0.13 %


def test_rankme_is_the_papers_formula() -> None:
    flat = torch.linalg.qr(torch.randn(32, 8, generator=torch.Generator().manual_seed(0))).Q
    assert compute_rankme(flat) == pytest.approx(8, abs=1e-4)
    assert compute_rankme(5 * flat) == pytest.approx(8, abs=1e-4)  # of any scale
    values = torch.tensor([0.5, 0.25, 0.25, *[0.0] * 5])
    entropy = 0.5 * math.log(2) + 0.5 * math.log(4)
    assert compute_rankme(flat * values) == pytest.approx(math.exp(entropy), abs=1e-4)
    assert compute_rankme(torch.ones(32, 8)) == pytest.approx(1, abs=1e-4)
    assert math.isnan(compute_rankme(torch.full((4, 2), torch.nan)))
    assert compute_rankme(torch.zeros(4, 2)) == pytest.approx(1, abs=1e-4)


class Thumbnail(nn.Module):
    """(B, C, S, S) -> (B, 3 * 16): averages of parts of the image."""

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(images, images.shape[-1] // 4).flatten(1)


def score(folder: Path, run: Run, *, batch_size: int = 3) -> dict[str, float]:
    recipe = CropRecipe(global_size=16, global_scale=(0.9, 1.0), local_views=0)
    views = OwnViews(
        open_training_source(str(folder)),
        recipe,
        run,
        LoaderConfig(batch_size=batch_size, workers=0),
        normalization=Normalization(),
    )
    with torch.device("cpu"):  # only the backbone's pass is on the device
        first = views(Thumbnail(), 0)
        assert views(Thumbnail(), 0) == first  # of the same views
    return dict(first)


def open_here(name: str, launch: Launch | None = None, url: str = "env://") -> Run:
    device = open_device(DeviceConfig(device=name))
    return Run(device=device, processes=Processes(launch or Launch(), "gloo", url))


def test_own_views_of_images_on_every_device(tmp_path: Path, device: torch.device) -> None:
    images = make_images(tmp_path, 7, size=32)
    found = score(images, open_here(device.type))
    wanted = score(images, open_here("cpu"), batch_size=100)
    assert found == pytest.approx(wanted, rel=1e-4)
    assert 0 <= found["own_view"] <= 100 and 1 < found["rankme"] <= 14


def score_in_company(rank: int, url: str, images: str, output: str) -> None:
    """One of two processes: score, and write what it got."""
    torch.set_num_threads(1)
    launch = Launch(rank=rank, world_size=2, local_rank=rank, local_world_size=2)
    run = open_here("cpu", launch, url)
    Path(output, f"{rank}.txt").write_text(repr(score(Path(images), run)))
    run.processes.close()


def test_two_processes_score_as_one_does(tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", 7, size=32)
    url = f"file://{tmp_path}/meet"
    jobs = [
        SERVER.Process(target=score_in_company, args=(rank, url, str(images), str(tmp_path)))
        for rank in range(2)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(600)
    assert [job.exitcode for job in jobs] == [0, 0]
    first, second = (eval((tmp_path / f"{rank}.txt").read_text()) for rank in range(2))
    assert first == second == pytest.approx(score(images, open_here("cpu")), rel=1e-5)
