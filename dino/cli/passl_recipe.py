"""Maps the keys of a nested linear-probe recipe, the sections of PASSL's YAML files, to flags.

PASSL's own recipes for DINO (version 2.5) and changed copies of them run unmodified. Where PASSL
has more choices than this project, a key accepts only the supported value.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dino.cli.recipes import Meaning, must_be, of_no_meaning, sets

NOTHING = (None, "None")  # PASSL reads the word as Python's None
SUFFIX = ".pdparams"  # PASSL leaves it out of the names of weights
WEIGHT_SUFFIXES = (SUFFIX, ".pth", ".pt", ".tar", ".safetensors")
BACKBONES = {  # PASSL's names -> the original's names
    "dino_deit_small16": "vit_small",
    "dino_deit_small8": "vit_small",
    "dino_vit_base16": "vit_base",
    "dino_vit_base8": "vit_base",
}
IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def read_rate(value: Any) -> dict[str, Any]:
    """Read a learning rate, which is never scaled with the batch."""
    return {"lr": value, "scale_lr": False}


def read_interval(value: Any) -> dict[str, Any]:
    """Read the epochs between two validations, which are also the epochs before the first one."""
    return {"val_freq": value, "val_first": value}


def read_weights(value: Any) -> dict[str, Any]:
    """Read the path of a weights file; its suffix may be missing.

    Raises:
        ValueError: The value is not text.
    """
    if value in NOTHING:
        return {}
    if not isinstance(value, str):
        raise ValueError(f"must be the path of a weights file (got {value!r})")
    return {"pretrained_weights": value if value.endswith(WEIGHT_SUFFIXES) else value + SUFFIX}


def read_backbone(value: Any) -> dict[str, Any]:
    """Read a backbone, by PASSL's name or by a name of `--arch`.

    Raises:
        ValueError: The value is not text.
    """
    if not isinstance(value, str):
        raise ValueError(
            f"must be a name such as {next(iter(BACKBONES))} or vit_small (got {value!r})"
        )
    return {"arch": BACKBONES.get(value, value)}


def read_device(value: Any) -> dict[str, Any]:
    """Read a device; gpu means any accelerator that is available."""
    return {} if value == "gpu" else {"device": value}


def read_root(*names: str) -> Meaning:
    """Return a reader of a split's folder, called one of `names`; its parent is data_path."""

    def read(value: Any) -> dict[str, Any]:
        if PurePath(str(value)).name not in names:
            raise ValueError(
                f"must be a folder called {' or '.join(names)} next to the other split's folder "
                f"(got {value!r})"
            )
        return {"data_path": str(PurePath(str(value)).parent)}

    return read


def _join(prefix: str, meanings: Mapping[str, Meaning]) -> dict[str, Meaning]:
    return {f"{prefix}.{name}": meaning for name, meaning in meanings.items()}


def _read_split(
    first_op: Mapping[str, Meaning], *more_ops: Mapping[str, Meaning]
) -> dict[str, Meaning]:
    """Return the keys that training and validation images share, operations by list index."""
    normalize = {"Normalize.mean": must_be(IMAGENET[0]), "Normalize.std": must_be(IMAGENET[1])}
    ops = (first_op, *more_ops, {"ToTensor": must_be(None, {})}, normalize)
    meanings: dict[str, Meaning] = {
        "dataset.name": must_be("ImageFolder"),
        "sampler.name": of_no_meaning,
    }
    for index, op in enumerate(ops):
        meanings |= _join(f"dataset.transform.{index}", op)
    return meanings | {
        "sampler.drop_last": of_no_meaning,
        "loader.use_shared_memory": of_no_meaning,
    }


TRAIN_OPS: tuple[dict[str, Meaning], ...] = (
    {
        "RandomResizedCrop.size": must_be(224, [224, 224]),
        "RandomResizedCrop.scale": must_be([0.08, 1.0]),
        "RandomResizedCrop.ratio": must_be([3 / 4, 4 / 3]),
        "RandomResizedCrop.interpolation": must_be("bilinear"),
    },
    {"RandomHorizontalFlip": must_be(None, {}, {"p": 0.5})},
)
EVAL_OPS: tuple[dict[str, Meaning], ...] = (
    {"Resize.size": must_be(256), "Resize.interpolation": must_be("bicubic")},
    {"CenterCrop.size": must_be(224, [224, 224])},
)
GLOBAL: dict[str, Meaning] = {
    "pretrained_model": read_weights,
    "checkpoint": must_be(*NOTHING),  # a run resumes from its output folder automatically
    "output_dir": sets("output_dir"),
    "epochs": sets("epochs"),
    "seed": sets("seed"),
    "device": read_device,
    "eval_interval": read_interval,
    "eval_unit": must_be("epoch"),
    "eval_during_train": must_be(True, "True"),
    "accum_steps": must_be(1),
    **dict.fromkeys(("task_type", "train_loop", "validate_loop", "save_interval"), of_no_meaning),
    **dict.fromkeys(
        ("max_num_latest_checkpoint", "print_batch_step", "use_visualdl"), of_no_meaning
    ),
}
MODEL: dict[str, Meaning] = {
    "name": of_no_meaning,
    "class_num": sets("num_labels"),
    "backbone.type": read_backbone,
    "backbone.patch_size": sets("patch_size"),
    "backbone.n_last_blocks": sets("n_last_blocks"),
    "backbone.avgpool_patchtokens": sets("avgpool_patchtokens"),
    "backbone.output_dim": of_no_meaning,
}
SCHEDULE: dict[str, Meaning] = {
    "name": must_be("TimmCosine"),
    "learning_rate": read_rate,
    "decay_unit": must_be("epoch"),
    "last_epoch": must_be(0),
    "warmup_epoch": must_be(0),
    "eta_min": must_be(0),
}
OPTIMIZER: dict[str, Meaning] = {
    "name": must_be("Momentum"),
    "lr": read_rate,
    "momentum": must_be(0.9),
    "weight_decay": must_be(0),
}
TRAIN: dict[str, Meaning] = {
    "dataset.root": read_root("train"),
    "sampler.batch_size": sets("batch_size_per_device"),
    "sampler.shuffle": must_be(True),
    "loader.num_workers": sets("num_workers"),
}
EVAL: dict[str, Meaning] = {
    "dataset.root": read_root("val", "validation"),
    # Validation uses the training batch size; scores do not depend on it.
    "sampler.batch_size": of_no_meaning,
    "sampler.shuffle": of_no_meaning,
    "loader.num_workers": of_no_meaning,
}
LINEAR_PROBE: Mapping[str, Meaning] = {
    **_join("Global", GLOBAL),
    # `--device` decides the backbone's format; the layer runs in fp32.
    "FP16.level": of_no_meaning,
    "DistributedStrategy.data_parallel": of_no_meaning,
    **_join("Model", MODEL),
    **{f"Loss.{split}.0.CELoss.weight": must_be(1) for split in ("Train", "Eval")},
    **_join("LRScheduler", SCHEDULE),
    **_join("Optimizer", OPTIMIZER),
    **_join("DataLoader.Train", _read_split(*TRAIN_OPS) | TRAIN),
    **_join("DataLoader.Eval", _read_split(*EVAL_OPS) | EVAL),
    **{f"Metric.{split}.0.TopkAcc.topk": must_be([1, 5]) for split in ("Train", "Eval")},
    **_join("Export", {"export_type": of_no_meaning, "input_shape": of_no_meaning}),
}
