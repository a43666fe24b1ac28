"""`dino demo`: pre-train a small ViT on the embedded data set, score it, and show it on a page."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from dino.cli.look import look
from dino.cli.options import parse_command
from dino.cli.parser import Help
from dino.cli.session import open_session, set_up_logging
from dino.config import OutputConfig, as_recipe
from dino.data.config import LimitConfig
from dino.evaluation.config import LookConfig
from dino.models.config import WeightsConfig
from dino.training.choices import choose_settings
from dino.training.config import TrainConfig

RECIPE = "configs/demo.yaml"
ABOUT = Help(
    summary=(
        "Pre-train a small ViT on the embedded data set, score it by k-NN, and show on a page what"
        " it makes of the images."
    ),
    example="dino demo",
)
PICTURES = 8  # images on the sheet of attention maps
SHOWN = 400  # images on the page


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; flags of `dino pretrain` override the recipe."""
    words = ["--config", RECIPE, "--data_path", "demo", "--output_dir", "output/demo"]
    began = time.monotonic()
    config, given, reasons = parse_command(
        TrainConfig,
        [*words, *(sys.argv[1:] if argv is None else argv)],
        choose_settings,
        about=ABOUT,
    )
    scores, paths = run_demo(config, as_recipe(config, given, reasons))
    lines = ["", f"{'k-NN top-1 (20 neighbors)':<30} {'%':>6}", "-" * 37]
    lines += [f"{name:<30} {score:6.1f}" for name, score in scores.items()]
    lines += ["", *(f"{name:<15} {path}" for name, path in paths.items())]
    lines += [f"{'time':<15} {(time.monotonic() - began) / 60:.1f} minutes"]
    sys.stdout.write("\n".join(lines) + "\n")


def run_demo(config: TrainConfig, recipe: str) -> tuple[dict[str, float], dict[str, Path]]:
    """Train, score and draw; return k-NN top-1 in % by name, and the paths of the written files."""
    from torch import nn

    from dino import checkpoint
    from dino.api.training import build_pictures, build_scorers
    from dino.data.photometric import build_normalization
    from dino.data.sources import open_labelled_splits
    from dino.evaluation.features import build_loader_config
    from dino.evaluation.knn import score_backbone
    from dino.models.vit import VisionTransformer
    from dino.runtime.folder_lock import hold_folder
    from dino.runtime.ownership import check_own
    from dino.runtime.sinks.tensorboard import EVENTS
    from dino.training.build import build_networks
    from dino.training.checks import check_options
    from dino.training.trainer import Trainer
    from dino.visualization.attention import draw_sheet
    from dino.visualization.look.page import PAGE
    from dino.weights.load import load_backbone

    set_up_logging()
    source, folder = check_options(config), Path(config.run.output_dir)
    target = folder / "attention.png"
    check_own([target, folder / PAGE])
    paths = {"checkpoint": folder / checkpoint.LATEST}
    paths |= {"TensorBoard": folder / EVENTS} if "tensorboard" in config.run.log_to else {}
    with open_session(config, precision=config.precision) as run:
        untrained = build_networks(config, run)[1].backbone
        with hold_folder(folder, first=run.processes.is_rank_zero):
            scorers = build_scorers(config, source, run)
            drawn = build_pictures(config, source, run)
            Trainer(config, source, run, scorers, pictures=drawn, recipe=recipe).train()
        weights = WeightsConfig(pretrained_weights=str(paths["checkpoint"]))
        teacher = load_backbone(config.backbone, weights)
        splits = open_labelled_splits("demo")
        reading = build_loader_config(config.data, run, keep_on_device=True)

        def score(module: nn.Module, **other: Any) -> float:
            described = replace(teacher, module=module, **other)
            return score_backbone(described, splits, run, reading).top1

        scores = {
            "raw pixels": score(nn.Flatten(), in_chans=3, normalization=None),
            "untrained network": score(untrained),
            "trained teacher": score(teacher.module),
        }
        page = look(_choose_page(config), run, splits[1])
    val = splits[1]
    pictures = [val.path(index * len(val) // PICTURES) for index in range(PICTURES)]
    normalization = build_normalization(teacher.in_chans, teacher.normalization)
    paths["attention maps"] = draw_sheet(
        cast(VisionTransformer, teacher.module.cpu()),
        pictures,
        size=teacher.image_size,
        normalization=normalization,
        target=target,
    )
    return scores, {**paths, "page": page}


def _choose_page(config: TrainConfig) -> LookConfig:
    """Settings of the page about the trained teacher, in the run's folder."""
    defaults, folder = LookConfig(), config.run.output_dir
    return replace(
        defaults,
        weights=WeightsConfig(pretrained_weights=folder),
        data=replace(defaults.data, num_workers=config.data.num_workers),
        limit=LimitConfig(data_limit=SHOWN),
        output=OutputConfig(output_dir=folder),
    )
