"""Names of a run's numbers in its sinks, in groups; TensorBoard also has the reference's tags."""

GROUPS = {  # the reference's tag -> the group's
    "loss": "train/loss",
    "lr": "train/lr",
    "wd": "train/weight_decay",
    "grad_norm": "train/grad_norm",
    "non_finite_steps": "train/non_finite_steps",
    "entropy": "teacher/entropy",
    "divergence": "teacher/divergence",
    "feature_std": "teacher/feature_std",
    "centre_norm": "teacher/center_norm",
    "own_view": "teacher/own_view",
    "rankme": "teacher/rankme",
    "knn_top1": "teacher/knn_top1",
    "knn_top5": "teacher/knn_top5",
    "examples/sec": "time/images_per_second",
    "iter_time": "time/iteration",
    "data_time": "data/time",
    "data_wait_share": "data/wait_share",
}
