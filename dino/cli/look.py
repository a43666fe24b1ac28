"""`dino look`: one page that shows what a backbone makes of a set of images."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dino import __version__
from dino.cli.options import parse
from dino.cli.parser import Help
from dino.cli.session import open_session, spell
from dino.evaluation.config import LookConfig

if TYPE_CHECKING:
    from dino.data.image_source import ImageSource
    from dino.evaluation.look import Survey
    from dino.runtime.context import Run
    from dino.visualization.look.page import Section

logger = logging.getLogger(__name__)

ABOUT = Help(
    example="dino look --data_path photos --pretrained_weights output/mine --output_dir look",
    required=("data_path",),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page.

    Raises:
        DinoError: The flags, weights or images are wrong.
    """
    config = parse(LookConfig, argv, ABOUT)

    import dino.evaluation.look  # before logging begins: faiss logs how it is loaded  # noqa: F401

    with open_session(config) as run:
        look(config, run)


def look(config: LookConfig, run: Run, source: ImageSource | None = None) -> Path:
    """Write index.html about the images of the settings, or of `source`; return its path.

    Raises:
        DinoError: The page cannot be written, the weights do not fit, or an image is missing or
            unreadable.
    """
    from dino.evaluation.look import survey_images
    from dino.runtime.context import make_output_folder
    from dino.runtime.ownership import check_own
    from dino.visualization.look.page import PAGE, build_page, write_page
    from dino.visualization.look.run_folder import find_run, show_run

    folder, word = Path(config.output.output_dir), config.weights.pretrained_weights
    if run.processes.is_rank_zero:
        check_own([make_output_folder(str(folder)) / PAGE])
    survey = survey_images(config, run, source)
    if not run.processes.is_rank_zero:
        return folder / PAGE
    trained = find_run(word)
    sections = [*_show_features(config, survey, run), *(show_run(trained) if trained else [])]
    title = f"{survey.backbone.arch} on {survey.source.root.name}"
    path = write_page(folder, build_page(title, _list_facts(config, survey, run), sections))
    logger.info("page: %s", path)
    return path


def _list_facts(config: LookConfig, survey: Survey, run: Run) -> dict[str, object]:
    """What was looked at."""
    from dino.models.registry import is_vit

    backbone, count = survey.backbone, len(survey.source)
    unnamed = "none, untrained" if config.weights.random_weights else "the published ones"
    patches = f", patches of {backbone.patch_size} pixels" if is_vit(backbone.arch) else ""
    part = "all" if count == survey.total else f"{count} of {survey.total}, evenly spaced"
    return {
        "weights": config.weights.pretrained_weights or unnamed,
        "network": f"{backbone.arch}{patches}, views of {backbone.image_size} pixels",
        "images": spell(survey.source.describe()),
        "looked at": part,
        "device": run.device.describe(),
        "written": f"{time.strftime('%Y-%m-%d %H:%M')} by version {__version__}",
    }


def _show_features(config: LookConfig, survey: Survey, run: Run) -> list[Section]:
    """The sections about the features."""
    from dino.evaluation.look import NEAREST, find_all
    from dino.visualization.look.map import show_map
    from dino.visualization.look.patches import PatchReader, show_attention, show_colors
    from dino.visualization.look.views import Views, show_rows

    least = config.likeness.duplicate_similarity
    found, views = find_all(survey, config.likeness), Views(survey.source, survey.backbone)
    shown = [line[0][0] for line in found.nearest]
    reader = PatchReader(survey.backbone, shown, views, run)
    mean = " after the mean of all images is subtracted" if survey.centered else ""
    near = (
        "Each row begins with an image, evenly spaced over the sorted list. The images most similar"
        f" to it follow, with the cosine similarity of their features{mean}."
    )
    odd = f"The images least similar to their {NEAREST} nearest, with the mean similarity."
    same = (
        f"{len(found.duplicates)} groups of images with a similarity of at least {least:g}"
        " (--duplicate_similarity) to the first of the group, the most similar first."
    )
    return [
        show_colors(reader),
        show_rows("Nearest neighbors", near, found.nearest, views),
        show_map(survey.features, views),
        show_attention(reader),
        show_rows("Outliers", odd, [found.outliers], views, related=False),
        show_rows("Near-duplicates", same, found.duplicates, views),
    ]
