"""TensorBoard reads our events, and a record is whole or not there."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino.errors import OptionError
from dino.runtime.sinks.base import Jpeg
from dino.runtime.sinks.tensorboard import EventFile


def read(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_scalars_are_read_back_at_once_by_tag_and_step(tmp_path: Path) -> None:
    events = EventFile(tmp_path / "new")
    events.add_scalars({"loss": 1.5, "train/lr": 0.25}, 3)
    events.add_scalars({"loss": 2.5}, 4)
    events.close()
    assert read(tmp_path / "new", "loss") == [(3, 1.5), (4, 2.5)]
    assert read(tmp_path / "new", "train/lr") == [(3, 0.25)]


def test_pictures_and_settings_are_read_back(tmp_path: Path) -> None:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    file = EventFile(tmp_path)
    file.add_images({"pictures/crops": Jpeg(b"content", 20, 30)}, 3)
    file.add_settings("lr: 0.1\n", {"lr": 0.1, "arch": "vit", "bn": True, "sizes": (1, 2)}, 4)
    file.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("pictures/crops")
    assert (image.step, image.encoded_image_string) == (3, b"content")
    assert (image.width, image.height) == (30, 20)
    (text,) = events.Tensors("recipe/text_summary")
    assert text.tensor_proto.string_val[0] == b"```yaml\nlr: 0.1\n\n```"
    assert events.summary_metadata["recipe/text_summary"].plugin_data.plugin_name == "text"
    found = events.summary_metadata["_hparams_/session_start_info"].plugin_data
    settings = HParamsPluginData.FromString(found.content).session_start_info.hparams
    assert found.plugin_name == "hparams" and settings["lr"].number_value == 0.1
    assert settings["arch"].string_value == "vit" and settings["bn"].bool_value
    assert settings["sizes"].string_value == "(1, 2)"


def test_a_full_disk_leaves_the_records_before_it_readable(tmp_path: Path) -> None:
    events = EventFile(tmp_path)
    events.add_scalars({"loss": 1.5}, 1)
    size, limits = (
        next(tmp_path.iterdir()).stat().st_size,
        resource.getrlimit(resource.RLIMIT_FSIZE),
    )
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 9, limits[1]))
    try:
        with pytest.raises(OSError, match="space|large"):
            events.add_scalars({"loss": 2.5}, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    events.add_scalars({"loss": 3.5}, 3)
    events.close()
    assert read(tmp_path, "loss") == [(1, 1.5), (3, 3.5)]


def test_two_files_of_one_second_do_not_meet(tmp_path: Path) -> None:
    for _ in range(3):
        EventFile(tmp_path).close()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(OptionError, match="file cannot be written to"):
        EventFile(tmp_path / "file")
