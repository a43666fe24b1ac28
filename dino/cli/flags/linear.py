"""Flags: the linear probe."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # LayerConfig
    "pretrained_linear": Spec(
        "file of the linear layer that --evaluate scores; by default "
        "OUTPUT_DIR/checkpoint.pth.tar, "
        "else the published layer"
    ),
    # ProbeConfig
    "n_last_blocks": Spec(
        "concatenate the CLS tokens of this many last blocks, by default at most all; ViT only "
        "(paper: 4 small, 1 base)"
    ),
    "avgpool_patchtokens": Spec(
        "append the mean patch token of the last block; ViT only (paper: false small, true base)"
    ),
    "num_labels": Spec("number of classes; must equal the number of class folders (the default)"),
    "val_freq": Spec("epochs between two validations; the last epoch is always validated"),
    "val_first": Spec("first epoch that is validated, counted from 1"),
    "scale_lr": Spec(
        "scale --lr, given for a global batch of 256, with the global batch; false: use --lr itself"
    ),
    "evaluate": Spec("do not train; score an existing linear layer", switch=True),
    "cache_features": Spec(
        "compute features of center crops once and train on them in seconds, without augmentation",
        switch=True,
    ),
}
