"""Flags: label propagation and its scores."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # RefreshConfig
    "refresh_label_interval": Spec("frames of a run from one true label map to the next"),
    # MetricsConfig
    "dataset_path": Spec(
        "DAVIS 2017, a folder of driving runs (RUN/image, RUN/segmentation), or one run",
        also=("--data_path",),
    ),
    "prediction_path": Spec("folder of the predictions, one folder of PNGs a sequence or run"),
    "layout": Spec("davis or driving; recognized by the folders"),
    "num_classes": Spec("driving: classes; a label beyond them is an error"),
    "ignore_label": Spec("driving: pixels of this true label do not count"),
    "skip_refreshed": Spec(
        "driving: leave out each --refresh_label_interval-th frame, predicted by its own label",
        switch=True,
    ),
    "csv": Spec("file to write all figures to as a table"),
    "pictures": Spec(
        "folder for pictures of each frame (image, truth, prediction, error), contact sheets and videos"
    ),
    # PropagationConfig
    "n_last_frames": Spec(
        "frames before the current one that give it labels, besides the first one"
    ),
    "size_mask_neighborhood": Spec(
        "how far from a position its labels may come, in positions of the feature grid; 0 means any distance"
    ),
    "topk": Spec("most similar positions, over all of these frames, whose labels are mixed"),
    "bs": Spec(
        "accepted, as the original takes it and does not use it; see --batch_size_per_device"
    ),
    # AutoencoderConfig
    "path_to_mae_repo": Spec("accepted, not needed: --arch mae reads the weights by itself"),
    # DavisScoreConfig
    "score": Spec(
        "score them too: J and F, as compute_segmentation_metrics.py",
        spelling="--evaluate",
        switch=True,
    ),
}
