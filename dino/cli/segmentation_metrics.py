"""`dino segmentation-metrics`: score predicted label maps."""

from __future__ import annotations

from collections.abc import Sequence

from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import set_up_logging
from dino.evaluation.config import SegmentationMetricsConfig

ABOUT = Help(
    example="dino segmentation-metrics --dataset_path DAVIS --prediction_path out",
    required=("dataset_path", "prediction_path"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Compare and report; draw if `--pictures` is given."""
    config = parse(SegmentationMetricsConfig, argv, ABOUT)

    from dino.evaluation.video_segmentation.report import open_clips, report_metrics
    from dino.runtime.context import make_output_folder

    if set_up_logging():
        return  # one process does all the work
    layout, clips = open_clips(config)
    folder = (
        make_output_folder(config.metrics.pictures, "`pictures`")
        if config.metrics.pictures
        else None
    )
    report_metrics(config, layout, clips)
    if folder:
        from dino.visualization.segmentation import draw_clips

        draw_clips(clips, folder, ignored=config.metrics.ignore_label)
