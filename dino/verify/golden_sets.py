"""Checks the k-NN vote and the augmentation against the original's and Pillow's numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dino import golden
from dino.data.photometric import (
    FACTORS,
    IMAGENET_STD,
    NEUTRAL,
    ORDER,
    PARAMETERS,
    RADIUS,
    Normalization,
    augment,
)
from dino.evaluation.features import Features
from dino.evaluation.knn import predict_classes
from dino.verify.golden_numbers import Found, Numbers

# Mean difference to Pillow in levels of 255, as in the project's tests.
LEVELS = {"operation": 1.0, "chain": 2.0}
POINTS = 0.5  # % of winners: one of 200 queries may have two equally near classes
KNN_SETS = {
    "main": (600, 200, 10, 500),
    "small": (150, 101, 3, 520),
    "many": (2400, 300, 1200, 540),
}


def check_knn(numbers: Numbers) -> Found:
    """Check the share of queries, in %, whose winning class differs from the original's."""
    arrays = golden.load("knn")
    for name, (train_count, test_count, classes, base) in KNN_SETS.items():
        train, test = (
            _labelled(numbers, base, count, classes, offset)
            for offset, count in ((0, train_count), (1, test_count))
        )
        for temperature in (0.07, 0.2):
            keys = {k: f"{name}/k{k}_T{temperature}/class" for k in (1, 5, 10, 20, 100, 150)}
            ranked = predict_classes(
                train,
                test.features,
                neighbors=tuple(keys),
                temperature=temperature,
                classes=classes,
            )
            for k, key in keys.items():
                other = float((ranked[k][:, 0].numpy() != arrays[key]).mean())
                yield (
                    f"k-NN {name} k {k} temperature {temperature}: other winners, %",
                    100 * other,
                    POINTS,
                )


def _labelled(numbers: Numbers, base: int, count: int, classes: int, offset: int) -> Features:
    """Build a golden set: classes scattered around their centers, normalized."""
    labels = np.random.RandomState(base + 2 + offset).randint(0, classes, count)
    rows = golden.draw(base + offset, count, 32) + 0.4 * golden.draw(base + 4, classes, 32)[labels]
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(
        features=numbers.to_device(rows.astype(np.float32)), labels=torch.as_tensor(labels)
    )


def check_photometric(numbers: Numbers) -> Found:
    """Check each operation and whole chains against Pillow: mean difference in levels of 255."""
    arrays, std = golden.load("augment"), np.asarray(IMAGENET_STD).reshape(3, 1, 1)
    plain, eager = (
        Normalization(mean=(0.0,) * 3, std=(1 / 255,) * 3),
        numbers.run.device.reads_freely,
    )
    bases = {
        key.split("/")[0]: int(arrays[key]) for key in arrays if key.endswith("/base_crop_index")
    }
    for key in arrays:
        picture, kind, *rest = key.split("/")
        if picture not in bases:
            continue
        base = arrays[f"{picture}/crop/{bases[picture]}/image"].transpose(2, 0, 1)[None]
        if kind == "op" and rest[1] == "param":
            row = numbers.to_device(_row_of_one(rest[0].split("_")[0], float(arrays[key])))
            result = augment(numbers.to_device(base), row, plain, eager=eager)[0].cpu().numpy()
            expected = arrays[key.replace("param", "image")].transpose(2, 0, 1).astype("f4")
            yield (
                f"{rest[0]} of picture {picture}, levels",
                float(np.abs(result - expected).mean()),
                LEVELS["operation"],
            )
        elif key.endswith("/order"):
            chain = key.removesuffix("/order")
            row = numbers.to_device(
                _build_row(
                    *(arrays[f"{chain}/{part}"] for part in ("flags", "factors", "order", "radius"))
                )
            )
            result = (
                augment(numbers.to_device(base), row, Normalization(), eager=eager)[0].cpu().numpy()
            )
            apart = np.abs(result - arrays[f"{chain}/normalised"]) * std * 255
            yield f"chain {chain}, levels", float(apart.mean()), LEVELS["chain"]


def _row_of_one(operation: str, value: float) -> np.ndarray:
    """Return the parameters (1, PARAMETERS) that apply one operation alone."""
    names = ("flip", "jitter", "gray", "blur", "solarize")
    colors = ("brightness", "contrast", "saturation", "hue")
    factors = [
        value if operation == name else neutral
        for name, neutral in zip(colors, NEUTRAL, strict=True)
    ]
    flags = [name == ("jitter" if operation in colors else operation) for name in names]
    return _build_row(flags, factors, range(4), value if operation == "blur" else 1.0)


def _build_row(flags: Any, factors: Any, order: Any, radius: Any) -> np.ndarray:
    """Build one row of parameters; `order` lists the operations in the order of their use."""
    row = np.zeros((1, PARAMETERS), np.float32)
    row[0, :5] = flags
    row[0, FACTORS] = factors
    row[0, ORDER] = np.argsort(order)
    row[0, RADIUS] = radius
    return row
