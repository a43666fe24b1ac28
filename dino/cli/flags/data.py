"""Flags: checking and packing images."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # InspectionConfig
    "min_size": Spec(
        "an image is tiny if its shorter side has fewer pixels; the default is one patch of the "
        "usual size"
    ),
    "clean_list": Spec(
        "text file that lists the clean images, without corrupt, tiny and duplicate ones; it can "
        "be "
        "used as --data_path",
        spelling="--output",
    ),
    # ShardConfig
    "shard_size": Spec("images per shard; the last one may hold fewer"),
    "shorter_side": Spec(
        "scale larger images down until their shorter side has this many pixels; smaller images "
        "stay unchanged"
    ),
}
