"""k-NN after training on views of the device and on the textbook's Pillow views, seed by seed.

    python benchmarks/augmentation_quality.py CIFAR10 [seeds] [epochs]         # 3 seeds, the recipe's epochs

CIFAR10 holds `train` and `val`. Each line is one run of `configs/cifar10.yaml`: same network, same
order of images.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import eval_knn  # noqa: E402
import main_dino  # noqa: E402
from benchmarks.host_pipeline import build_textbook  # noqa: E402
from dino.data.crops import Crops, build_rng  # noqa: E402
from dino.data.datasets import CropDataset  # noqa: E402
from dino.data.photometric import PARAMETERS  # noqa: E402

RECIPE = Path(__file__).parent.parent / "configs" / "cifar10.yaml"


class PillowCrops(CropDataset):
    """The textbook's views, float32 already."""

    def __getitem__(self, key: tuple[int, int]) -> Crops:
        """Views of one image; their randomness is a function of (seed, epoch, index) here too."""
        seed = int(build_rng(self.seed, *key).integers(2**31))
        random.seed(seed)
        torch.manual_seed(seed)
        with Image.open(self.source.path(key[1])) as picture:
            views = [view(picture.convert("RGB")) for view in build_textbook(self.recipe)]
        unused = [torch.zeros(count, PARAMETERS) for count in (2, len(views) - 2)]
        return Crops(
            torch.stack(views[:2]), unused[0], torch.stack(views[2:]), unused[1], torch.tensor(0)
        )


def run(data: Path, seed: int, dataset: type[CropDataset], epochs: list[str]) -> float:
    """Train, and score the teacher: k-NN top-1 in per cent with 20 neighbors."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--config",
            str(RECIPE),
            "--data_path",
            str(data / "train"),
            "--output_dir",
            folder,
        ]
        with mock.patch("dino.training.build.CropDataset", dataset):
            main_dino.main([*words, "--seed", str(seed), *epochs])
        words = [
            "--data_path",
            str(data),
            "--pretrained_weights",
            f"{folder}/checkpoint.pth",
            "--nb_knn",
            "20",
        ]
        eval_knn.main([*words, "--json", f"{folder}/knn.json"])
        return float(json.loads(Path(folder, "knn.json").read_text())["knn"]["20"]["top1"])


def main() -> None:
    """Compare, seed by seed."""
    data, seeds, epochs = (
        Path(sys.argv[1]),
        int((*sys.argv, "3")[2]),
        [f"--epochs={word}" for word in sys.argv[3:]],
    )
    found: dict[str, list[float]] = {"device": [], "pillow": []}
    for seed in range(seeds):
        for name, dataset in (("device", CropDataset), ("pillow", PillowCrops)):
            found[name].append(run(data, seed, dataset, epochs))
            print(json.dumps({"seed": seed, "views": name, "knn": found[name][-1]}), flush=True)
    print(
        json.dumps(
            {name: {"mean": np.mean(part), "std": np.std(part)} for name, part in found.items()}
        )
    )


if __name__ == "__main__":
    main()
