"""A folder to upload to the Hugging Face Hub: `dino convert IN FOLDER --to hub`.

It has the form of the library that can load the network: transformers, else timm, else this
package, whose own folders are read here.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.errors import CheckpointError, OptionError
from dino.weights.config import ConversionConfig
from dino.weights.formats import Contents, Format

if TYPE_CHECKING:
    from dino.weights.network import Network

logger = logging.getLogger(__name__)

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
OURS = "dino-reference"  # the name of this package as the library of a folder


@dataclass(frozen=True, kw_only=True)
class HubConfig(ConversionConfig):
    """Write a folder for the Hugging Face Hub, with a model card from the run's own numbers.

    dino convert RUN FOLDER --to hub. Nothing is uploaded.
    """


def is_ours(path: Path) -> bool:
    """Whether it is a folder in this package's own form."""
    from dino.weights.hugging_face_files import read_json

    try:
        return (path / CONFIG).is_file() and read_json(path / CONFIG).get("library_name") == OURS
    except CheckpointError:
        return False


def read_folder(word: str) -> dict[str, Any]:
    """Read a folder in this package's own form.

    Raises:
        CheckpointError: The weights are missing or damaged.
    """
    from dino.weights.safetensors_file import read_safetensors

    return read_safetensors(Path(word) / WEIGHTS)


def name_kind(contents: Contents) -> str:
    """Name such a folder."""
    return "backbone of this project, a folder for the Hub" if is_ours(Path(contents.word)) else ""


def write_hub(config: ConversionConfig) -> None:
    """Write the folder, whole or not at all, and read its weights back.

    Raises:
        OptionError: The folder exists and holds something, or cannot be written.
        WeightsError: The network does not fit, or a tensor differs when it is read back.
        CheckpointError: A file is missing or damaged.
    """
    from dino.files import atomic_draft
    from dino.models.registry import width_of
    from dino.weights.convert import check_written, describe_found, report_written
    from dino.weights.load import find_network
    from dino.weights.model_card import write_card
    from dino.weights.run_facts import read_facts
    from dino.weights.targets import check_output

    target = check_output(config, "", both_ways=False)
    check_new(target)
    found = find_network(config.backbone, config.weights, channels=config.channels)
    network = describe_found(found, config)
    facts = read_facts(found.state, config.weights, network)
    with atomic_draft(target, "`file_out`") as draft:
        library = write_folder(network, draft)
        width = width_of(found.trained.module)
        write_card(draft / CARD, network, library, facts, width=width)
        count = check_written(network, draft)
    report_written(config, network, target, count)
    logger.info("%s is loaded by %s; choose a license in its %s", target, library, CARD)
    logger.info("to upload it: hf upload USER/NAME %s", target)


def check_new(target: Path) -> None:
    """Refuse a folder that holds something: a model card is edited by hand.

    Raises:
        OptionError: It does.
    """
    if target.is_dir() and any(target.iterdir()):
        raise OptionError(
            f"`file_out` {target} must be a new folder: it holds files",
            value=target,
            remedy="name another, or move it away",
        )


def write_folder(network: Network, target: Path) -> str:
    """Write configuration and weights. Returns the name of the library that loads them.

    Raises:
        OptionError: The folder cannot be written to.
        WeightsError: The network has another architecture than it says, or an unknown one.
        CheckpointError: As above.
    """
    from dino.weights.formats import huggingface, timm_folder
    from dino.weights.formats.timm import name_model

    if network.is_plain_vit and network.arch:
        huggingface.write_folder(network, target)
        return "transformers"
    try:
        name_model(network)
    except OptionError as error:
        reason = str(error).removesuffix(f"; {error.remedy}")
        logger.info("neither transformers nor timm loads this network: %s", reason)
        write_ours(network, target)
        return OURS
    timm_folder.write_folder(network, target)
    return "timm"


def write_ours(network: Network, target: Path) -> None:
    """Write a folder in this package's own form.

    Raises:
        OptionError: The images are not square, or the folder cannot be written to.
        CheckpointError: A file cannot be written.
    """
    from dino.files import atomic_write
    from dino.runtime.context import make_output_folder
    from dino.weights.ours import describe_ours, write_safetensors

    make_output_folder(str(target), "`file_out`")
    write_safetensors(network, target / WEIGHTS)
    about = {"library_name": OURS, **describe_ours(network, target / WEIGHTS)}
    with atomic_write(target / CONFIG, "`file_out`") as temporary:
        temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


# Before Hugging Face's own folders, which have a config.json too.
FORMAT = Format(
    rank=1, detect=is_ours, read=read_folder, kind=name_kind, config=HubConfig, run=write_hub
)
