"""Do the scores without labels follow k-NN? Spearman's correlation over the epochs of a run.

    python main_dino.py --config configs/demo.yaml --data_path demo --output_dir output/demo --saveckp_freq 1
    python benchmarks/label_free_scores.py output/demo --data_path demo

The run has a numbered checkpoint for every epoch, and its images still lie where they lay. Scores the
untrained network and each checkpoint: k-NN top-1 (k = 20) on the labelled train and val folders in
--data_path, and own_view and rankme as the run itself does. Prints one JSON object: the scores in the
order of the epochs, and each score's Spearman correlation with k-NN over the epochs, without the
untrained network. --limit takes that many images of each labelled folder.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from dino.api.training import score_own_views  # noqa: E402
from dino.cli.options import parse  # noqa: E402
from dino.config import RECIPE  # noqa: E402
from dino.data.image_source import ImageSource  # noqa: E402
from dino.data.sources import open_labelled_splits, open_training_source  # noqa: E402
from dino.evaluation.features import build_loader_config  # noqa: E402
from dino.evaluation.knn import score_backbone  # noqa: E402
from dino.models.config import WeightsConfig  # noqa: E402
from dino.runtime.context import Run, open_run  # noqa: E402
from dino.training.build import build_networks, choose_normalization  # noqa: E402
from dino.training.config import TrainConfig  # noqa: E402
from dino.weights.load import TrainedBackbone, load_backbone  # noqa: E402

LABEL_FREE = ("own_view", "rankme")


def main() -> None:
    """Score a run and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="output folder of the run")
    parser.add_argument("--data_path", required=True, help="folder with labelled train and val")
    parser.add_argument("--limit", type=int, help="images of each of the two")
    arguments = parser.parse_args()
    words = ["--config", str(arguments.run / RECIPE), "--device", "cpu"]
    config = parse(TrainConfig, words)
    splits = tuple(
        source.limited(arguments.limit) for source in open_labelled_splits(arguments.data_path)
    )
    with open_run(config.device, config.launch, precision=config.precision) as run:
        rows = score_epochs(config, splits, run, arguments.run)
    print(json.dumps({"run": arguments.run.name, "scores": rows, "spearman": correlate(rows[1:])}))


def score_epochs(
    config: TrainConfig, splits: tuple[ImageSource, ...], run: Run, folder: Path
) -> list[dict[str, float]]:
    """Scores by name: of the untrained network, then of each epoch."""
    source = open_training_source(config.data.data_path, config.train_data.data_limit)
    own_view = score_own_views(config, source, run)
    assert own_view is not None
    reading = build_loader_config(config.data, run, keep_on_device=True)
    normalization = choose_normalization(config)

    def score(module: nn.Module) -> dict[str, float]:
        backbone = TrainedBackbone(
            module=module,
            arch="teacher",
            patch_size=1,
            image_size=config.crops.global_crops_size,
            in_chans=config.student.chosen_in_chans,
            normalization={name: list(part) for name, part in asdict(normalization).items()},
        )
        knn = score_backbone(backbone, (splits[0], splits[1]), run, reading).top1
        return {"knn": knn, **own_view(module, 0)}

    rows = [score(build_networks(config, run)[1].backbone.eval())]
    for path in sorted(folder.glob("checkpoint[0-9][0-9][0-9][0-9].pth")):
        weights = WeightsConfig(pretrained_weights=str(path))
        rows.append(score(load_backbone(config.backbone, weights).module))
    return rows


def correlate(rows: list[dict[str, float]]) -> dict[str, float]:
    """Spearman's correlation of each score without labels with k-NN; NaN if one is constant."""
    ranks = {name: rank(torch.tensor([row[name] for row in rows])) for name in rows[0]}
    together = torch.corrcoef(torch.stack([ranks["knn"], *(ranks[name] for name in LABEL_FREE)]))
    return dict(zip(LABEL_FREE, together[0, 1:].tolist(), strict=True))


def rank(values: Tensor) -> Tensor:
    """(n,) values to their ranks from 0; equal values share the mean of theirs."""
    below, equal = (values[:, None] > values).sum(1), (values[:, None] == values).sum(1)
    return below + (equal - 1) / 2


if __name__ == "__main__":
    main()
