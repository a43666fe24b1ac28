"""Flags: converting weights from one format to another."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # OutputFileConfig
    "file_out": Spec(
        "file or folder to write: OUT.pth in this project's format, any other name in the other "
        "format",
        spelling="--output",
    ),
    # TargetConfig
    "input_size": Spec(
        "height and width in pixels of future images; a ViT's position embedding is resampled for "
        "them; one number: a square; by default it stays unchanged"
    ),
    # FilesConfig
    "file_in": Spec("checkpoint to read", spelling="--weights"),
}
