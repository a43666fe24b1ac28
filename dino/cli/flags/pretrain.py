"""Flags: pre-training."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # StudentConfig
    "drop_path_rate": Spec(
        "stochastic depth of the student, 0 to 1; a network without it refuses it"
    ),
    "out_dim": Spec("prototypes K, the width of the head's output; small data sets need fewer"),
    "norm_last_layer": Spec("keep the prototypes at unit length; more stable for small networks"),
    "use_bn_in_head": Spec("batch norm in the head's hidden layers"),
    "init_from": Spec(
        "start a new run from these weights (not a resume); same forms as --pretrained_weights"
    ),
    # TeacherConfig
    "momentum_teacher": Spec(
        "EMA momentum at the start; rises to 1 along a cosine; small batches need more"
    ),
    "warmup_teacher_temp": Spec("teacher temperature at the start"),
    "teacher_temp": Spec(
        "teacher temperature after its warm-up; lower it if the loss does not fall"
    ),
    "warmup_teacher_temp_epochs": Spec("epochs of linear temperature warm-up"),
    # OptimConfig
    "optimizer": Spec("update rule"),
    "eps": Spec("adamw: added to the root of the second moment"),
    "warmup_epochs": Spec("epochs of linear learning-rate warm-up"),
    "min_lr": Spec("learning rate at the end of the cosine"),
    "weight_decay": Spec("weight decay at the start of its cosine"),
    "weight_decay_end": Spec("weight decay at the end"),
    "clip_grad": Spec("largest gradient norm of each parameter tensor; 0 turns clipping off"),
    "freeze_last_layer": Spec("epochs during which the prototypes are frozen"),
    # CropConfig
    "global_crops_scale": Spec("smallest and largest area of a global crop, 0 to 1"),
    "local_crops_number": Spec("local crops per image; 0 turns multi-crop off"),
    "local_crops_scale": Spec("smallest and largest area of a local crop, 0 to 1"),
    "global_crops_size": Spec("side of a global crop in pixels"),
    "local_crops_size": Spec("side of a local crop in pixels"),
    # TrainDataConfig
    "mean": Spec(
        "mean of each channel, 0 to 1, that is taken from the pixels; auto: from 1,000 images; "
        "by default ImageNet's; evaluations take it from the checkpoint"
    ),
    "std": Spec("standard deviation of each channel, as --mean"),
    "on_bad_image": Spec("whether an unreadable image ends the run or is replaced"),
    "augment_on": Spec("where colors, blur and normalization are computed; host: in the loaders"),
    "synthetic_data": Spec(
        "train on random pixels made once on the device, to measure its speed alone", switch=True
    ),
    # RunConfig
    "accumulate_steps": Spec("batches per update; the global batch grows by this factor"),
    "recompute": Spec(
        "what the backward pass recomputes to save memory, from least to most: activations "
        "(normalizations, GELUs), mlp (also MLPs), blocks; slower by up to a fifth. auto is "
        "activations for a vision transformer on cpu, else nothing"
    ),
    "saveckp_freq": Spec("epochs between two numbered checkpoints; 0 keeps none"),
    "save_every_steps": Spec(
        "also save after every this many iterations; 0 saves only at the end of each epoch"
    ),
    "keep_checkpoints": Spec("how many of the newest numbered checkpoints to keep; 0 keeps all"),
    "eval_knn_every": Spec(
        "epochs between k-NN scores on the val (or validation) folder next to the images"
    ),
    "own_view_images": Spec(
        "images of the scores without labels: how often a view of an image finds its other view, "
        "and the rank of the features; 0 turns them off"
    ),
    "keep_best": Spec(
        "keep the checkpoint with the best score so far as checkpoint_best.pth: knn "
        "(needs --eval_knn_every) or own_view"
    ),
    "draw_pictures": Spec(
        "draw the first crops, and after each epoch the teacher's attention and patches of four "
        "images, to the output folder and --log_to"
    ),
    "preset": Spec(
        "auto: choose network, crops, prototypes, momentum, temperatures, warm-ups and lr, unless "
        "given, from the images, the global batch and the epochs or --hours; each with a reason"
    ),
    "hours": Spec(
        "with --preset auto, instead of --epochs: how long to train; the speed is measured first"
    ),
    "dry_run": Spec(
        "run two steps on random pixels and report images/s, hours, memory, FLOPs, the share of "
        "each phase and the largest batch; writes no files",
        switch=True,
    ),
}
