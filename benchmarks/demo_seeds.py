"""The demo's three k-NN scores for three seeds, and the supervised probe that says what the data set allows.

    python benchmarks/demo_seeds.py [--seeds 0 1 2] [--probe]

Prints one JSON line a seed. `--probe` trains the demo's network with labels instead (cross-entropy,
the same images, crops of 0.4 to 1 of the area, flips and color jitter) and prints its validation
accuracy.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import demo  # noqa: E402
from dino.cli.options import parse  # noqa: E402
from dino.data.crops import CropRecipe, build_rng, center_crop, cut_crops  # noqa: E402
from dino.data.decode import read_image  # noqa: E402
from dino.data.photometric import augment, build_normalization  # noqa: E402
from dino.data.sources import ImageSource, open_labelled_splits  # noqa: E402
from dino.models.registry import build_backbone  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402

PROBE_EPOCHS, PROBE_BATCH, PROBE_RATE = 20, 64, 1.5e-3


def main() -> None:
    """Run the seeds, or the probe."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output_dir", default="output/demo_seeds")
    parser.add_argument("--probe", action="store_true")
    arguments = parser.parse_args()
    if arguments.probe:
        print(json.dumps({"probe": run_probe(), "threads": torch.get_num_threads()}))
        return
    for seed in arguments.seeds:
        words = ["--config", str(demo.RECIPE), "--data_path", "demo"]
        words += ["--seed", str(seed), "--output_dir", f"{arguments.output_dir}/{seed}"]
        began = time.monotonic()
        scores, _ = demo.run_demo(parse(TrainConfig, words))
        seconds = round(time.monotonic() - began)
        print(
            json.dumps(
                {"seed": seed, **scores, "seconds": seconds, "threads": torch.get_num_threads()}
            ),
            flush=True,
        )


def run_probe() -> float:
    """Supervised validation accuracy of the demo's network, in per cent."""
    config = parse(TrainConfig, ["--config", str(demo.RECIPE)])
    train, val = open_labelled_splits("demo")
    size = config.crops.global_crops_size
    torch.manual_seed(0)
    channels = config.student.chosen_in_chans
    backbone = build_backbone(
        config.backbone.chosen_arch,
        patch_size=config.backbone.chosen_patch_size,
        img_size=size,
        in_chans=channels,
    )
    model = nn.Sequential(backbone, nn.Linear(backbone.embed_dim, len(train.classes)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=PROBE_RATE, weight_decay=0.05)
    steps = PROBE_EPOCHS * (len(train) // PROBE_BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, PROBE_RATE, total_steps=steps, pct_start=0.15
    )
    for epoch in range(PROBE_EPOCHS):
        order = np.random.default_rng(epoch).permutation(len(train))
        for batch in (
            order[: len(order) // PROBE_BATCH * PROBE_BATCH].reshape(-1, PROBE_BATCH).tolist()
        ):
            images, labels = _views(train, batch, epoch, size, channels)
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return _accuracy(model.eval(), val, size, channels)


def _views(
    source: ImageSource, batch: list[int], epoch: int, size: int, channels: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """One global crop an image, flipped and jittered but neither gray, blurred nor solarized."""
    recipe = CropRecipe(global_size=size, local_views=0)
    images = [read_image(source.path(index), channels) for index in batch]
    crops = [
        cut_crops(image, recipe, build_rng(0, epoch, index))
        for image, index in zip(images, batch, strict=True)
    ]
    rows = torch.stack([crop.global_parameters[0] for crop in crops])
    rows[:, 2:5] = 0.0
    pixels = torch.stack([crop.global_pixels[0].movedim(-1, 0) for crop in crops])
    assert source.labels is not None
    return augment(pixels, rows, build_normalization(channels)), torch.tensor(
        [source.labels[index] for index in batch]
    )


def _accuracy(model: nn.Module, source: ImageSource, size: int, channels: int) -> float:
    pixels = torch.stack(
        [center_crop(read_image(source.path(i), channels), size) for i in range(len(source))]
    )
    with torch.inference_mode():
        found = model(build_normalization(channels)(pixels)).argmax(dim=1)
    return 100.0 * (found == torch.tensor(source.labels)).float().mean().item()


if __name__ == "__main__":
    main()
