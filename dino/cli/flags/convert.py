"""Flags: weights from one form to another."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # OutputFileConfig
    "file_out": Spec(
        "where to write: OUT.pth in this project's form, anything else in the other one's",
        spelling="--output",
    ),
    # TargetConfig
    "input_size": Spec(
        "height and width in pixels of the images to come, for which a ViT's position embedding is resampled; one "
        "number: a square; without it as it is"
    ),
    # FilesConfig
    "file_in": Spec("checkpoint to read", spelling="--weights"),
}
