"""What a run of W&B holds on disk: its file is a log of LevelDB with records of W&B's own protobuf."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32768  # bytes; no chunk crosses a block
HEADER = 7  # of the file, and of each chunk: checksum (4), length (2), kind (1)
WHOLE, LAST = 1, 4  # kinds of a chunk that end a record


def read_records(path: Path) -> Iterator[Any]:
    """Yield the whole records of a `.wandb` file, which may still grow."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = path.read_bytes(), HEADER, b""
    while place + HEADER <= len(content):
        if BLOCK - place % BLOCK < HEADER:  # padding
            place += BLOCK - place % BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        record += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST) and place <= len(content):
            yield Record.FromString(record)
            record = b""


def read_history(folder: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Lines of the offline runs below `folder`, the oldest first: id, step, values by tag.

    A picture has several values: its file's path, width, ...
    """
    lines = []
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        run = path.stem.removeprefix("run-")
        for record in read_records(path):
            if record.HasField("history"):
                items = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                step = items.pop("_step")
                values = {tag: value for tag, value in items.items() if tag[0] != "_"}
                lines.append((run, step, values))
    return lines


def read_config(folder: Path) -> dict[str, Any]:
    """Settings that the offline runs below `folder` hold."""
    config = {}
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for record in read_records(path):
            for changes in (record.run.config, record.config):
                config |= {item.key: json.loads(item.value_json) for item in changes.update}
    return config
