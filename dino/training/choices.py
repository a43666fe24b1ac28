"""Settings that the images decide: `mean` and `std` auto, and what `preset` auto chooses.

A run that continues keeps what it chose at first, as its recipe.yaml says.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dino.config import RECIPE, UNSET, as_dict, build, change, list_settings
from dino.errors import DataError, OptionError
from dino.training.config import TrainConfig
from dino.training.preset import CHOSEN, Scale, choose_values
from dino.training.small_data import TOO_FEW_IMAGES, Start

if TYPE_CHECKING:
    from dino.data.image_source import ImageSource

logger = logging.getLogger(__name__)

AUTO = "auto"
KEPT = "auto: as this run began"
LOOK = 16  # images, evenly spaced, whose sizes are looked at
ADVICE = (
    "{images} images are few to train from nothing, and the features may stay close to those of an"
    " untrained network; `init_from` hub:dino_vits16 starts from published weights, with frozen"
    " first epochs and a low rate"
)


def choose_settings(
    config: TrainConfig, given: Collection[str], source: ImageSource | None = None
) -> tuple[TrainConfig, dict[str, str]]:
    """Choose the settings that the images decide.

    With `hours`, `preset` auto still has to measure the device: it stays, and `fit_hours` applies
    it.

    Args:
        config: The run's settings.
        given: Names of the settings that were set explicitly.
        source: The images; defaults to those in `data_path`.

    Returns:
        The settings, and the reason for each value that was chosen.

    Raises:
        DinoError: The images cannot be listed or read, or the launcher's environment is invalid.
    """
    check_hours(config, given)
    config, reasons = apply_preset(config, given, source)
    config, more = _choose_pixels(config, source)
    return config, reasons | more


def check_hours(config: TrainConfig, given: Collection[str]) -> None:
    """Check that the time budget is one, and of the preset.

    Raises:
        OptionError: It is not.
    """
    hours = config.run.hours
    if hours is None:
        return
    if config.run.preset is None or "epochs" in given:
        raise OptionError(
            f"`hours` {hours:g} lets `preset` auto choose `epochs`, and"
            f" {'`epochs` is given' if 'epochs' in given else 'there is no `preset`'}",
            value=hours,
            remedy="give either `epochs`, or `hours` with `preset` auto",
        )
    if config.run.dry_run:
        raise OptionError(
            "`hours` and `dry_run` both measure the speed",
            remedy="give `epochs` instead of `hours`",
        )


def apply_preset(
    config: TrainConfig, given: Collection[str], source: ImageSource | None = None
) -> tuple[TrainConfig, dict[str, str]]:
    """Apply the preset to all settings that were not set explicitly; do nothing without a preset.

    Args:
        config: The run's settings.
        given: Names of the settings that were set explicitly.
        source: The images; defaults to those in `data_path`.

    Returns:
        The settings, and the reason for each value that was chosen; that of `preset` says that
        nothing is left to choose.

    Raises:
        DinoError: The images or the weights cannot be read, or the launcher's environment is
            invalid.
    """
    if config.run.preset is None:
        return config, {}
    kept = _keep_earlier(config, given)
    if kept is not None:
        return kept
    return (config, {}) if config.run.hours is not None else resolve(config, given, source)


def resolve(
    config: TrainConfig,
    given: Collection[str],
    source: ImageSource | None = None,
    reasons: Mapping[str, str] | None = None,
) -> tuple[TrainConfig, dict[str, str]]:
    """Replace the preset by what it chooses for the epochs of `config`.

    Args:
        config: As in `apply_preset`.
        given: As in `apply_preset`.
        source: As in `apply_preset`.
        reasons: Reasons of values that are chosen already, such as the epochs.
    """
    from dino.data.sources import open_training_source  # imports torch, which --help does not need

    source = source or open_training_source(config.data.data_path, config.train_data.data_limit)
    scale = measure_scale(config, given, source)
    chosen = {name: choice for name, choice in choose_values(scale).items() if name not in given}
    values = {name: value for name, (value, _) in chosen.items()}
    resolved = change(config, values | {"preset": None, "hours": None})
    found = {name: f"auto: {reason}" for name, (_, reason) in chosen.items()} | dict(reasons or {})
    if len(source) < TOO_FEW_IMAGES and scale.start is None:
        found["init_from"] = ADVICE.format(images=len(source))
    return resolved, found | {"preset": "auto was applied; it chose the values marked so"}


def measure_scale(config: TrainConfig, given: Collection[str], source: ImageSource) -> Scale:
    """Return the size of a run, with what is set already."""
    from dino.devices import has_batch_norm
    from dino.models.registry import is_vit
    from dino.runtime.launch import read_launch

    world_size = read_launch(os.environ).world_size
    backbone, start = config.backbone, _read_start(config)
    has_patches = start is not None or "arch" not in given or is_vit(backbone.chosen_arch)
    return Scale(
        images=len(source),
        global_batch=config.data.batch_size_per_device * config.run.accumulate_steps * world_size,
        epochs=config.run.epochs,
        optimizer=config.optim.optimizer,
        side=_look_at_sides(source) if has_patches else None,
        network=backbone.arch if "arch" in given else None,
        patch_size=backbone.patch_size,
        batch_norm=has_batch_norm(config.device.device),
        start=start,
    )


def log_reasons(config: TrainConfig, reasons: Mapping[str, str]) -> None:
    """Log one line for each value that was chosen; advice is a warning."""
    values = as_dict(config)
    if kept := [name for name, reason in reasons.items() if reason == KEPT]:
        logger.info("`preset` auto: %d settings are as this run began", len(kept))
    for name, reason in reasons.items():
        if name == "init_from":
            logger.warning("%s", reason)
        elif name != "preset" and reason != KEPT:
            logger.info("`%s` %s (%s)", name, _spell(values[name]), reason)


def read_earlier(folder: Path) -> Mapping[str, Any]:
    """Return the settings of the run that has a checkpoint in this folder; empty without one."""
    from dino import checkpoint

    recipe = folder / RECIPE
    if not (checkpoint.is_begun(folder) and recipe.is_file()):
        return {}
    try:
        values = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return values if isinstance(values, dict) else {}


def _keep_earlier(
    config: TrainConfig, given: Collection[str]
) -> tuple[TrainConfig, dict[str, str]] | None:
    """Return the settings as the run in the output folder has them, or None if it is a new run.

    Raises:
        OptionError: The recipe in the output folder holds a value that is none.
    """
    earlier = read_earlier(Path(config.run.output_dir))
    if not earlier:
        return None
    unset = earlier.get(UNSET, ())
    others = {*given, *(unset if isinstance(unset, list) else ())}
    others |= set() if config.run.hours is not None else {"epochs"}
    known = build(TrainConfig, {name: earlier[name] for name in CHOSEN if name in earlier})
    values = {
        name: getattr(getattr(known, group), name)
        for group, name in list_settings(known)
        if name in CHOSEN and name in earlier and name not in others
    }
    kept = change(config, values | {"preset": None, "hours": None})
    return kept, dict.fromkeys(values, KEPT) | {"preset": "auto was applied when this run began"}


def _look_at_sides(source: ImageSource) -> int | None:
    """Return the median of the shorter sides of some images, or None if none can be read."""
    some, sides = source.limited(LOOK), []
    for index in range(len(some)):
        try:
            sides.append(min(some.read_size(index)))
        except DataError:  # the run says it in its own words
            continue
    return sorted(sides)[len(sides) // 2] if sides else None


def _read_start(config: TrainConfig) -> Start | None:
    """Return what the weights of `init_from` are, or None if the run starts from nothing."""
    if config.student.init_from is None:
        return None

    from dino.data.photometric import build_normalization
    from dino.models.config import BackboneConfig, WeightsConfig
    from dino.models.registry import is_vit
    from dino.weights.load import find_network

    weights = WeightsConfig(pretrained_weights=config.student.init_from)
    found = find_network(BackboneConfig(), weights).trained
    usual = build_normalization(found.in_chans)
    own = build_normalization(found.in_chans, found.normalization)
    return Start(
        arch=found.arch,
        patch_size=found.patch_size if is_vit(found.arch) else None,
        image_size=found.image_size,
        normalization=None if own == usual else {"mean": own.mean, "std": own.std},
    )


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
        known = build(TrainConfig, {name: earlier[name] for name in names}).train_data
        values = {name: getattr(known, name) for name in names}
        return change(config, values), dict.fromkeys(names, KEPT)

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


def _spell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(_spell, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
