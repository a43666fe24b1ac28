"""Whether `--preset auto` on little data ends above the untrained network, by k-NN.

    python benchmarks/small_data.py SHARED/data [--sets photos40 photos100 cifar10] [--seeds 0 1 2]

`photos40` and `photos100` are the first 40 and 100 images of each class of `photos/train`. Training
does not see the labels. The images that trained the network are also the bank of the k-NN score
(k = 20), which is of the val images. Prints one JSON line a run, then a table: means over the seeds,
and the standard error of the mean of what training added.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import yaml
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

import dino  # noqa: E402
from dino.config import RECIPE, UNSET, build  # noqa: E402
from dino.data.image_source import ImageSource  # noqa: E402
from dino.data.sources import open_images  # noqa: E402
from dino.devices.cpu import CpuDevice  # noqa: E402
from dino.evaluation.features import LoaderConfig  # noqa: E402
from dino.evaluation.knn import score_backbone  # noqa: E402
from dino.models.config import BackboneConfig, WeightsConfig  # noqa: E402
from dino.runtime.context import Run  # noqa: E402
from dino.runtime.distributed import Processes  # noqa: E402
from dino.runtime.launch import Launch  # noqa: E402
from dino.training.build import build_networks  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402
from dino.weights.load import load_backbone  # noqa: E402


def open_set(root: Path, name: str) -> tuple[ImageSource, ImageSource]:
    """Return the images to train on and those to score."""
    folder = root / name.rstrip("0123456789") if name.startswith("photos") else root / name
    train, val = (open_images(str(folder / split)) for split in ("train", "val"))
    if not name.startswith("photos"):
        return train, val
    most, kept = int(name.removeprefix("photos")), []
    seen: dict[int, int] = {}
    for index, label in enumerate(train.labels or ()):
        seen[label] = seen.get(label, 0) + 1
        kept += [index] if seen[label] <= most else []
    return train.selected(kept), val


def run(root: Path, name: str, seed: int, hours: float, more: dict[str, object]) -> dict:
    """Train once; return k-NN in % before and after, and what the preset chose."""
    splits, began = open_set(root, name), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder, "images.txt")
        listed.write_text("\n".join(str(splits[0].path(i)) for i in range(len(splits[0]))))
        out = Path(folder, "run")
        settings = {"preset": "auto", "hours": hours, "seed": seed, "device": "cpu", **more}
        trained = dino.pretrain(listed, out, **settings).checkpoint
        seconds = time.monotonic() - began
        recipe = yaml.safe_load((out / RECIPE).read_text())
        unset = recipe.pop(UNSET)
        config = build(TrainConfig, {k: v for k, v in recipe.items() if k not in unset})
        weights = WeightsConfig(pretrained_weights=str(trained))
        teacher = load_backbone(BackboneConfig(), weights)
    on = Run(device=CpuDevice("fp32"), processes=Processes(Launch(), "gloo", "env://"))
    reading = LoaderConfig(batch_size=64, workers=1)
    before = build_networks(config, on)[1].backbone.eval()

    def score(module: nn.Module) -> float:
        found = replace(teacher, module=module)
        return round(score_backbone(found, splits, on, reading).top1, 2)

    chosen = {name: recipe[name] for name in ("arch", "global_crops_size", "epochs", "lr")}
    figures = {"untrained": score(before), "trained": score(teacher.module)}
    return {"set": name, "seed": seed, **figures, "seconds": round(seconds), **chosen}


def summarize(lines: list[dict]) -> str:
    """Return a row: means, and the standard error of the mean gain over the seeds."""
    gains = [line["trained"] - line["untrained"] for line in lines]
    error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    means = [statistics.mean(line[name] for line in lines) for name in ("untrained", "trained")]
    return f"| {lines[0]['set']} | {means[0]:.1f} | {means[1]:.1f} | {error:.1f} |"


def main() -> None:
    """Run every set with every seed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path)
    parser.add_argument("--sets", nargs="+", default=["photos40", "photos100", "cifar10"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hours", type=float, default=0.15)
    parser.add_argument("--init_from")
    arguments = parser.parse_args()
    more = {"init_from": arguments.init_from} if arguments.init_from else {}
    rows = ["| set | untrained | trained | standard error |", "| --- | --- | --- | --- |"]
    for name in arguments.sets:
        lines = []
        for seed in arguments.seeds:
            lines.append(run(arguments.root, name, seed, arguments.hours, more))
            print(json.dumps(lines[-1]), flush=True)
        rows.append(summarize(lines))
    print("\n".join(rows))


if __name__ == "__main__":
    main()
