"""Flags: copy detection and image retrieval."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # CopydaysConfig
    "distractors_path": Spec("images that are searched too and are no copy of any (paper: 10k)"),
    "whitening_path": Spec("images from which a whitening of the features is learnt (paper: 20k)"),
    # LandmarkConfig
    "dataset": Spec("which of the two sets"),
    "multiscale": Spec("average the features of three sizes: 1, 1/sqrt(2) and 1/2"),
    "crop_queries": Spec(
        "cut each query to the box of its landmark, as the benchmark has it", switch=True
    ),
}
