"""Flags: checking and packing images."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # InspectionConfig
    "min_size": Spec(
        "an image whose shorter side has fewer pixels is tiny; the default is one patch of the usual size"
    ),
    "clean_list": Spec(
        "text file to list the images in that are worth training on: without corrupt and tiny ones and repetitions; "
        "it can be a --data_path",
        spelling="--output",
    ),
    # ShardConfig
    "shard_size": Spec("images in a shard; the last one may hold fewer"),
    "shorter_side": Spec(
        "scale larger pictures down until their shorter side has so many pixels; the others stay as they are"
    ),
}
