"""Flags: the linear probe."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # LayerConfig
    "pretrained_linear": Spec(
        "file of the linear layer that --evaluate scores; without it OUTPUT_DIR/checkpoint.pth.tar, else the published"
    ),
    # ProbeConfig
    "n_last_blocks": Spec(
        "join the CLS tokens of this many last blocks; ViT only (paper: 4 small, 1 base)"
    ),
    "avgpool_patchtokens": Spec(
        "join the mean patch token of the last block too; ViT only (paper: false small, true base)"
    ),
    "num_labels": Spec("classes; by default as many as class folders, which it must equal"),
    "val_freq": Spec("epochs between two validations; the last epoch is always validated"),
    "val_first": Spec("epoch, counted from 1, that is validated first"),
    "scale_lr": Spec(
        "--lr is for a global batch of 256 and scaled with it; false: it is the rate itself"
    ),
    "evaluate": Spec("train nothing: score a linear layer that is there already", switch=True),
    "cache_features": Spec(
        "compute the features once, of center crops, and train on them in seconds: no augmentation",
        switch=True,
    ),
}
