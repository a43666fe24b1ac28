"""The common part of every evaluation of a frozen backbone: check, load, extract, report.

An evaluation reads its layout, gets the backbone and the features from its runner, scores them by
pure functions, and passes named numbers to the runner.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from dino.evaluation.config import EvaluationConfig
from dino.evaluation.features import build_loader_config, extract_features
from dino.models.probe import FEW, Probe
from dino.models.registry import is_vit
from dino.runtime.context import Run
from dino.runtime.metrics import check_target, write_result
from dino.weights.hub import PUBLISHED, Published
from dino.weights.load import TrainedBackbone, load_backbone


class Runner:
    """One evaluation on one run. `extract` is `extract_features` with `run` and `reading` bound."""

    def __init__(
        self,
        config: EvaluationConfig,
        run: Run,
        *,
        keep_on_device: bool = False,
        max_batches: int | None = None,
    ) -> None:
        """Check that `json` is writable, and bind the run. See `LoaderConfig` for the other two.

        Raises:
            OptionError: `json` cannot be written.
        """
        check_target(config.report.json)
        self.config, self.run = config, run
        self.reading = build_loader_config(
            config.data, run, keep_on_device=keep_on_device, max_batches=max_batches
        )
        self.extract = functools.partial(extract_features, run=run, reading=self.reading)

    def load_backbone(
        self, published: Published = PUBLISHED, *, center_crops: bool = True
    ) -> TrainedBackbone:
        """Load the backbone of the settings, rank 0 first. The default file is one of `published`.

        Args:
            published: The published files, used if no file is named.
            center_crops: Whether its images will be squares of the size of its training.

        Raises:
            WeightsError: The weights are missing or do not fit.
            CheckpointError: The file is damaged.
            OptionError: A network of another library does not take such squares.
        """
        with self.run.processes.rank_zero_first():
            loaded = load_backbone(
                self.config.backbone,
                self.config.weights,
                published=published,
                pixel_range=self.config.pixels.pixel_range,
            )
        if center_crops and not is_vit(loaded.arch):
            Probe(loaded.arch, in_chans=loaded.in_chans).check_pass(FEW, loaded.image_size)
        return loaded

    def report(self, values: Mapping[str, Any]) -> None:
        """Write the values to `json`, on rank 0.

        Raises:
            OptionError: The file cannot be written.
        """
        if self.run.processes.is_rank_zero:
            write_result(self.config.report.json, values)
