"""Flags: copy detection and image retrieval."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # CopydaysConfig
    "distractors_path": Spec("extra images to search that are copies of none (paper: 10k)"),
    "whitening_path": Spec("images from which the whitening of features is learned (paper: 20k)"),
    # LandmarkConfig
    "dataset": Spec("which of the two data sets"),
    "multiscale": Spec("average the features of three sizes: 1, 1/sqrt(2) and 1/2"),
    "crop_queries": Spec(
        "crop each query to the box of its landmark, as in the benchmark", switch=True
    ),
}
