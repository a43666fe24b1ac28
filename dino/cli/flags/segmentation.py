"""Flags: label propagation and its scores."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # RefreshConfig
    "refresh_label_interval": Spec("frames between two true label maps of a run"),
    # MetricsConfig
    "dataset_path": Spec(
        "DAVIS 2017, a folder of driving runs (RUN/image, RUN/segmentation), or one run",
        also=("--data_path",),
    ),
    "prediction_path": Spec("folder of the predictions, one folder of PNGs per sequence or run"),
    "layout": Spec("davis or driving; by default recognized from the folders"),
    "num_classes": Spec("driving: number of classes; a larger label is an error"),
    "ignore_label": Spec("driving: pixels with this true label do not count"),
    "skip_refreshed": Spec(
        "driving: skip every --refresh_label_interval-th frame, whose prediction is its own label",
        switch=True,
    ),
    "csv": Spec("file for all figures as a table"),
    "pictures": Spec(
        "folder for images of each frame (image, truth, prediction, error), contact sheets and "
        "videos"
    ),
    # PropagationConfig
    "n_last_frames": Spec(
        "preceding frames whose labels are propagated, in addition to the first frame"
    ),
    "size_mask_neighborhood": Spec(
        "largest distance from which a position takes labels, in positions of the feature grid; 0: "
        "any distance"
    ),
    "topk": Spec("number of most similar positions in these frames whose labels are mixed"),
    "bs": Spec("accepted and ignored, as in the original; see --batch_size_per_device"),
    # AutoencoderConfig
    "path_to_mae_repo": Spec("accepted and ignored: --arch mae reads the weights without it"),
    # DavisScoreConfig
    "score": Spec(
        "also score the predictions: J and F, as compute_segmentation_metrics.py",
        spelling="--evaluate",
        switch=True,
    ),
}
