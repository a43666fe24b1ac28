"""Settings that the images decide: `mean` and `std` auto, and what `preset` auto chooses.

A run that continues keeps what it chose at first, as its recipe.yaml says.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dino.config import RECIPE, as_dict, change
from dino.errors import OptionError
from dino.training.config import TrainConfig
from dino.training.preset import apply_preset

if TYPE_CHECKING:
    from dino.data.image_source import ImageSource

logger = logging.getLogger(__name__)

AUTO = "auto"


def choose_settings(
    config: TrainConfig, given: Collection[str], source: ImageSource | None = None
) -> tuple[TrainConfig, dict[str, str]]:
    """Choose the settings that the images decide.

    Args:
        config: The run's settings.
        given: Names of the settings that were set explicitly.
        source: The images; defaults to those in `data_path`.

    Returns:
        The settings, and the reason for each value that was chosen.

    Raises:
        DinoError: The images cannot be listed or read, or the launcher's environment is invalid.
    """
    config, reasons = apply_preset(config, given, source)
    config, more = _choose_pixels(config, source)
    return config, reasons | more


def log_reasons(config: TrainConfig, reasons: Mapping[str, str]) -> None:
    """Log one line for each value that was chosen."""
    values = as_dict(config)
    for name, reason in reasons.items():
        if name != "preset":
            value = values[name]
            text = ",".join(f"{part:g}" for part in (value if isinstance(value, list) else [value]))
            logger.info("`%s` %s (%s)", name, text, reason)


def read_earlier(folder: Path) -> Mapping[str, Any]:
    """Return the settings of the run that has a checkpoint in this folder; empty without one."""
    from dino import checkpoint  # imports torch, which --help does not need

    recipe = folder / RECIPE
    begun = any((folder / name).exists() for name in (checkpoint.LATEST, checkpoint.PREVIOUS))
    if not (begun and recipe.is_file()):
        return {}
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _choose_pixels(
    config: TrainConfig, source: ImageSource | None
) -> tuple[TrainConfig, dict[str, str]]:
    pixels = config.train_data
    names = [name for name in ("mean", "std") if getattr(pixels, name) == AUTO]
    if not names:
        return config, {}
    if pixels.synthetic_data:
        raise OptionError(
            f"`{names[0]}` auto measures images, and `synthetic_data` reads none",
            remedy="give numbers, or leave it out",
        )
    earlier = read_earlier(Path(config.run.output_dir))
    if all(isinstance(earlier.get(name), list) for name in names):
        values = {name: tuple(earlier[name]) for name in names}
        return change(config, values), dict.fromkeys(names, "auto: as this run began")

    from dino.data.pixel_statistics import SAMPLE, measure_pixels
    from dino.data.sources import open_training_source

    source = source or open_training_source(config.data.data_path, pixels.data_limit)
    logger.info("measuring mean and standard deviation of the pixels")
    found = measure_pixels(
        source.ranged(pixels.pixel_range),
        config.student.chosen_in_chans,
        skip_bad=pixels.on_bad_image == "skip",
    )
    reason = f"auto: of {min(SAMPLE, len(source))} images"
    return change(config, {name: getattr(found, name) for name in names}), dict.fromkeys(
        names, reason
    )
