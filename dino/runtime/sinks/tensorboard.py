"""TensorBoard events, written at once: a killed run keeps them, and a full disk is an error here.

The writers of TensorBoard and torch write from a thread, where an error ends in a traceback.
"""

from __future__ import annotations

import io
import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dino.errors import OptionError
from dino.files import append_whole
from dino.runtime.sinks.base import Jpeg, Sink, Start

EVENTS = "tensorboard"
COUNT = itertools.count()  # two files of one second have different names
RGB, DT_STRING = 3, 7  # TensorBoard's and TensorFlow's numbers


class EventFile(Sink):
    """One new events file in a folder."""

    def __init__(
        self,
        folder: Path,
        *,
        purge_step: int | None = None,
        also: Mapping[str, str] | None = None,
    ) -> None:
        """Create the file.

        Args:
            folder: Its folder; created if missing.
            purge_step: TensorBoard drops what older files hold from this step on.
            also: Second tags by tag.

        Raises:
            OptionError: The folder cannot be written to.
        """
        self.place, self.also = str(folder), also or {}
        moment = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(COUNT)}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.file = (folder / f"events.out.tfevents.{moment}").open("ab", buffering=0)
            self._write(file_version="brain.Event:2")
            if purge_step is not None:
                self._write(step=purge_step, session_log={"status": "START"})
        except OSError as error:
            raise OptionError(f"{folder} cannot be written to: {error}") from error

    @classmethod
    def open(cls, start: Start) -> EventFile:
        """Create a run's file in its folder.

        Raises:
            OptionError: The folder cannot be written to.
        """
        purge_step = start.iteration + 1 if start.iteration else None
        return cls(start.folder / EVENTS, purge_step=purge_step, also=start.also)

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars, one per tag and second tag.

        Raises:
            OSError: They cannot be written.
        """
        more = {self.also[tag]: value for tag, value in values.items() if tag in self.also}
        scalars = [{"tag": tag, "simple_value": value} for tag, value in {**values, **more}.items()]
        self._write(step=step, summary={"value": scalars})

    def add_images(self, images: Mapping[str, Jpeg], step: int) -> None:
        """Write pictures, one per tag.

        Raises:
            OSError: They cannot be written.
        """
        for tag, jpeg in images.items():
            image = {
                "height": jpeg.height,
                "width": jpeg.width,
                "colorspace": RGB,
                "encoded_image_string": jpeg.content,
            }
            self._write(step=step, summary={"value": [{"tag": tag, "image": image}]})

    def add_settings(self, text: str, settings: Mapping[str, Any], step: int) -> None:
        """Write a recipe as text, and settings as hyperparameters.

        Raises:
            OSError: They cannot be written.
        """
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        numbers = {name: _to_value(value) for name, value in settings.items()}
        start = {"hparams": numbers, "start_time_secs": time.time()}
        content = HParamsPluginData(session_start_info=start).SerializeToString()
        tensor = {
            "dtype": DT_STRING,
            "string_val": [f"```yaml\n{text}\n```".encode()],
            "tensor_shape": {"dim": [{"size": 1}]},
        }
        values = [
            {"tag": "recipe/text_summary", "metadata": _of_plugin("text"), "tensor": tensor},
            {"tag": "_hparams_/session_start_info", "metadata": _of_plugin("hparams", content)},
        ]
        self._write(step=step, summary={"value": values})

    def close(self, *, completed: bool = True) -> None:
        """Close the file."""
        self.file.close()

    def _write(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # imported here: it takes a while
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        append_whole(self.file, record.getvalue())


def _of_plugin(name: str, content: bytes = b"") -> dict[str, Any]:
    return {"plugin_data": {"plugin_name": name, "content": content}}


def _to_value(value: Any) -> dict[str, Any]:
    """A setting as a value of protobuf: a number, a truth value or its text."""
    if isinstance(value, bool):
        return {"bool_value": value}
    if isinstance(value, (int, float)):
        return {"number_value": value}
    return {"string_value": str(value)}
