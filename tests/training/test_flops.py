"""Counted operations are those of the formula."""

from __future__ import annotations

import pytest

from dino.training.flops import count_flops
from tests.training.test_dry_run import options_of


def count_vit(tokens: int, *, width: int, depth: int, ratio: float, patch: int) -> float:
    """Multiply-adds of one view through a ViT: patches, four products with weights a block, and the
    attention; in the last block, one token needs more than its projections."""
    block = tokens * width * width * (4 + 2 * ratio) + 2 * tokens * tokens * width
    last = width * width * (3 * tokens + 1 + 2 * ratio) + 2 * tokens * width
    return (tokens - 1) * 3 * patch * patch * width + (depth - 1) * block + last


def count_head(width: int, prototypes: int) -> float:
    return width * 2048 + 2048 * 2048 + 2048 * 256 + 256 * prototypes


@pytest.mark.parametrize(
    ("words", "shape", "sides", "prototypes"),
    [
        ((), {"width": 96, "depth": 3, "ratio": 2.0, "patch": 8}, (16, 8), 16),
        (
            ("--global_crops_size", 32, "--local_crops_number", 3, "--out_dim", 64),
            {"width": 96, "depth": 3, "ratio": 2.0, "patch": 8},
            (32, 8, 8, 8),
            64,
        ),
        (
            *(
                (
                    "--arch",
                    "vit_small",
                    "--patch_size",
                    16,
                    "--local_crops_number",
                    8,
                    "--out_dim",
                    65536,
                ),
            ),
            {"width": 384, "depth": 12, "ratio": 4.0, "patch": 16},
            (224, *(96,) * 8),
            65536,
        ),
    ],
    ids=["tiny", "more views", "vit_small"],
)
def test_counted_operations_are_those_of_the_formula(
    words: tuple[object, ...], shape: dict, sides: tuple[int, ...], prototypes: int
) -> None:
    """Student: forward, and twice that backward but for the gradient of the pixels; teacher: the
    global views."""
    sizes = ("--global_crops_size", sides[0], "--local_crops_size", sides[1])
    views = [count_vit((side // shape["patch"]) ** 2 + 1, **shape) for side in (sides[0], *sides)]
    head = count_head(shape["width"], prototypes)
    pixels = sum(
        3 * (side - side % shape["patch"]) ** 2 * shape["width"] for side in (sides[0], *sides)
    )
    student = 3 * (sum(views) + len(views) * head) - pixels
    teacher = 2 * (views[0] + head)
    assert count_flops(options_of(*words, *sizes)) == pytest.approx(
        2 * (student + teacher), rel=0.03
    )
