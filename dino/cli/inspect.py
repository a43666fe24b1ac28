"""`dino inspect`: describe a weights file without executing anything in it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dino.cli.options import parse, positional_to_flags
from dino.cli.parser import Help
from dino.cli.session import set_up_logging
from dino.config import ReportConfig
from dino.errors import OptionError
from dino.models.config import WeightsFileConfig

logger = logging.getLogger(__name__)

ABOUT = Help(
    places="FILE",
    example="dino inspect checkpoint.pth",
    required=("pretrained_weights",),
)


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Describe a weights file: its origin, its networks, and how they were trained.

    Nothing in the file is executed.
    """

    weights: WeightsFileConfig = WeightsFileConfig()
    report: ReportConfig = ReportConfig()


def main(argv: Sequence[str] | None = None) -> None:
    """Read the file and describe it.

    Raises:
        OptionError: No file is named.
        DinoError: The file is missing or damaged, or holds more than tensors and plain values.
    """
    config = parse(InspectConfig, positional_to_flags(argv, "--pretrained_weights"), ABOUT)
    word = config.weights.pretrained_weights
    if not word:
        raise OptionError("name a weights file: python -m dino.inspect FILE")

    from dino.runtime.metrics import check_target, write_result
    from dino.weights.describe import describe_file
    from dino.weights.read import read_weights

    set_up_logging()
    check_target(config.report.json)
    about = describe_file(word, read_weights(word))
    logger.info("%s: %s", word, about["kind"])
    for name, network in about["networks"].items():
        logger.info("%s: %s", name, phrase_network(network))
    for name in ("centre", "epoch", "normalisation", "scores"):
        if name in about:
            logger.info("%s: %s", name, about[name])
    if about["flags"]:
        logger.info(
            "flags: %s", " ".join(f"--{name} {value}" for name, value in about["flags"].items())
        )
    write_result(config.report.json, {"file": word, **about})


def phrase_network(network: Mapping[str, Any]) -> str:
    """Describe one network on one line."""
    shape = network.get("arch") or (
        f"ViT {network['width']} wide, {network['depth']} deep" if "width" in network else ""
    )
    words = {
        shape: bool(shape),
        f"patch size {network.get('patch_size')}": "patch_size" in network,
        f"{network.get('in_chans')} channels": "in_chans" in network,
        "images of {0} x {0}".format(network.get("image_size")): "image_size" in network,
        f"{network.get('tensors')} tensors ({network.get('numbers', 0) / 1e6:.2f} M)": "tensors"
        in network,
        "/".join(network.get("formats", ())): True,
        f"{network.get('prototypes')} prototypes": "prototypes" in network,
        f"{network.get('classes')} classes": "classes" in network,
        "also "
        + ", ".join(f"{name} ({n})" for name, n in network.get("beside", {}).items()): "beside"
        in network,
    }
    return ", ".join(word for word, said in words.items() if said)
