"""When pictures are drawn, and that they change no bit of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dino.cli.options import parse
from dino.data.crops import Crops
from dino.errors import OptionError
from dino.runtime.sinks.base import Jpeg
from dino.training.build import build_networks, build_program
from dino.training.config import TrainConfig
from dino.training.dry_run import draw_batch
from dino.training.pictures import CROPPED, Album
from tests import hpu_simulator
from tests.running import TINY, make_images, on_simulated_card, state_of, train
from tests.training.test_build import run_of
from tests.training.test_trainer import assert_equal

JPEG = Jpeg(b"", 1, 1)


class Recorder:
    """Notes what it is asked to draw."""

    def __init__(self, error: Exception | None = None) -> None:
        self.views: list[Sequence[Tensor]] = []
        self.backbones: list[nn.Module] = []
        self.written: list[tuple[list[str], int]] = []
        self.error = error

    def draw_crops(self, views: Sequence[Tensor], images: int) -> Mapping[str, Jpeg]:
        self.views.append(views)
        assert len(views[0]) == 2 * images
        return {"crops": JPEG}

    def draw_backbone(self, backbone: nn.Module) -> Mapping[str, Jpeg]:
        self.backbones.append(backbone.eval())
        if self.error:
            raise self.error
        return {"epoch": JPEG}

    def write(self, pictures: Mapping[str, Jpeg], iteration: int) -> None:
        self.written.append((list(pictures), iteration))


@pytest.fixture(scope="module")
def built() -> tuple[TrainConfig, Any, Any]:
    config = parse(TrainConfig, [*TINY, "--batch_size_per_device", "3", "--use_bn_in_head", "true"])
    student, teacher = build_networks(config, run_of())
    return config, build_program(config, student, teacher, run_of()), teacher


def test_the_crops_are_those_of_the_first_images_as_the_step_augments_them(built: Any) -> None:
    config, program, teacher = built
    recorder, batch = Recorder(), draw_batch(config)
    album = Album(recorder, program, recorder.write)
    modes = [part.training for part in teacher.modules()]
    for iteration in range(5):
        album.see(batch, iteration)
    assert recorder.written == [(["crops"], 2)]  # 3 + 3 + 2 images
    views, expected = recorder.views[0], program.augment(batch, eager=True)
    for found, whole in zip(views, expected, strict=True):
        found, whole = found.unflatten(0, (-1, CROPPED)), whole.unflatten(0, (-1, 3))
        assert torch.equal(found[:, :3], whole) and torch.equal(found[:, 6:], whole[:, :2])
    album.end_epoch(teacher, 7)
    assert recorder.written[1:] == [(["epoch"], 7)] and recorder.backbones == [teacher.backbone]
    assert [part.training for part in teacher.modules()] == modes


def test_an_epoch_of_few_images_shows_those_it_has(built: Any) -> None:
    config, program, teacher = built
    recorder = Recorder()
    album = Album(recorder, program, recorder.write)
    album.see(draw_batch(config), 0)
    album.end_epoch(teacher, 1)
    assert recorder.written == [(["crops"], 1), (["epoch"], 1)]
    assert len(recorder.views[0][0]) == 2 * 3


@pytest.mark.parametrize("error", [OptionError("full"), RuntimeError("no memory")])
def test_a_picture_that_fails_is_one_warning(
    built: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    _, program, teacher = built
    recorder = Recorder(error)
    album = Album(recorder, program, recorder.write)
    for _ in range(2):
        album.end_epoch(teacher, 1)
    assert caplog.messages == [f"pictures of the run cannot be drawn: {error}"]
    assert all(not part.training for part in teacher.backbone.modules())


def test_without_pictures_nothing_is_kept(built: Any) -> None:
    config, program, teacher = built
    album = Album(None, program, Recorder().write)
    album.see(Crops(*[None] * 5), 0)  # type: ignore[arg-type]  # not looked at
    album.end_epoch(teacher, 1)
    assert album.crops is None


CARD = pytest.param(
    ("--device", "hpu"),
    marks=pytest.mark.skipif(bool(hpu_simulator.why_unavailable()), reason="no simulated hpu"),
)


@pytest.mark.parametrize("mode", [("--drop_path_rate", 0.1), CARD], ids=["cpu", "hpu"])
def test_a_run_with_pictures_has_the_bits_of_one_without(
    tmp_path: Path, mode: tuple[object, ...]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    images = make_images(tmp_path / "images", 12)
    prepare = on_simulated_card if "hpu" in mode else None
    for name in ("true", "false"):
        words = (*mode, "--draw_pictures", name, "--output_dir", tmp_path / name)
        result = train(tmp_path, "--data_path", images, *words, prepare=prepare)
        assert result.code == 0 and "cannot be drawn" not in result.text, result.text
    assert_equal(state_of(tmp_path / "true"), state_of(tmp_path / "false"))
    pictures, none = (
        sorted(path.name for path in (tmp_path / name).glob("*.png")) for name in ("true", "false")
    )
    assert (pictures, none) == (["crops.png", "epoch_attention.png", "epoch_patches.png"], [])
    events = EventAccumulator(str(tmp_path / "true" / "tensorboard")).Reload()
    assert [event.step for event in events.Images("pictures/crops")] == [1]
    for name in ("epoch_attention", "epoch_patches"):
        assert [event.step for event in events.Images(f"pictures/{name}")] == [3, 6]
