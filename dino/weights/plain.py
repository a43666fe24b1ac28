"""Extract a checkpoint's backbone as a plain state dictionary, readable by the original too."""

from __future__ import annotations

import logging
from pathlib import Path

from dino import checkpoint
from dino.errors import OptionError
from dino.models.config import WeightsConfig
from dino.runtime.metrics import check_target
from dino.weights.config import ExtractConfig, FilesConfig
from dino.weights.load import load_backbone

logger = logging.getLogger(__name__)


def extract_backbone(config: ExtractConfig) -> None:
    """Write the float32 backbone of `file_in` to `file_out`. A partial backbone is an error.

    Raises:
        OptionError: A file is not named, or cannot be written.
        WeightsError: A tensor of the backbone is missing.
        CheckpointError: The file is missing or damaged.
    """
    source, target = name_files(config.files)
    weights = WeightsConfig(
        pretrained_weights=str(source), checkpoint_key=config.network.checkpoint_key
    )
    backbone = load_backbone(config.backbone, weights)
    checkpoint.save_file(target, backbone.module.state_dict())
    logger.info("%s: the %s's backbone, %s", target, config.network.checkpoint_key, backbone.arch)


def name_files(files: FilesConfig) -> tuple[Path, Path]:
    """Return the input file and the output file.

    Raises:
        OptionError: A file is not named, both are the same, or the output cannot be written.
    """
    if not files.file_in or not files.file_out:
        raise OptionError("name both files: `file_in` CHECKPOINT `file_out` FILE")
    source, target = Path(files.file_in), Path(files.file_out)
    if source.resolve() == target.resolve():
        raise OptionError(
            f"`file_out` {target} is the input file", value=target, remedy="name another file"
        )
    check_target(str(target), "`file_out`")
    return source, target
