"""Flags: features in a file."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # FeatureConfig
    "output": Spec("file to write: .npz, .safetensors, .parquet or .csv"),
    "layers": Spec(
        "blocks whose features to write, counted from 1; by default the network's output; ViT only"
    ),
    "patches": Spec("also write the grid of patch tokens; ViT only, not for .csv", switch=True),
}
