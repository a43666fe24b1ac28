"""The command: `python -m dino.data.check PATH`: names the images that are corrupt, tiny, odd or there twice."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.cli.options import parse, positional_to_flags
from dino.cli.parser import Help
from dino.cli.session import set_up_logging
from dino.config import ReportConfig, chosen, derived, setting
from dino.data.config import SourceConfig
from dino.errors import CheckFailed, DataError, OptionError
from dino.models.config import ChannelConfig

if TYPE_CHECKING:
    from dino.data.image_source import ImageSource

logger = logging.getLogger(__name__)

ABOUT = Help(
    places="PATH",
    example="dino check photos --output clean.txt",
    required=("data_path",),
)


@dataclass(frozen=True, kw_only=True)
class ManyWorkersConfig(SourceConfig):
    """As many loader processes as there are cores, up to 64."""

    num_workers: int | None = derived(64, least=0)


@dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """What makes an image suspicious, and what becomes of the others."""

    min_size: int = setting(16, least=1)
    clean_list: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Decode every image of a folder or list, and name what is corrupt, tiny, oddly stored or there twice.

    Ends with 1 if there is any such image.
    """

    source: SourceConfig = ManyWorkersConfig()
    channels: ChannelConfig = ChannelConfig()
    check: InspectionConfig = InspectionConfig()
    report: ReportConfig = ReportConfig()


Findings = dict[str, dict[int, str]]  # kind -> index of an image -> what was found
LEFT_OUT = (
    "corrupt",
    "tiny",
    "duplicate",
    "unlistable",
)  # of a clean list; odd ones are kept, as they decode
EVERY = 1000  # images between two progress lines


def main(argv: Sequence[str] | None = None) -> None:
    """Check the images, and list the clean ones where that was asked for.

    Raises:
        CheckFailed: There are others.
        DataError: No images there, or a loader process died.
        OptionError: The list cannot be written.
    """
    config = parse(CheckConfig, positional_to_flags(argv, "--data_path"), ABOUT)

    from dino.data.sources import open_images
    from dino.runtime.metrics import write_result

    set_up_logging()
    output = config.check.clean_list
    if output:
        _check_output(Path(output))
    source = open_images(config.source.data_path)
    if source.members:
        raise DataError(
            f"--data_path {source.root} holds shards",
            remedy="check the folder that they were packed from",
        )
    found = inspect_images(source, config)
    names = _choose_clean(source, found, Path(output).parent) if output else []
    _report(source, found)
    listed = _write_clean(names, Path(output), len(source)) if output else {}
    write_result(config.report.json, _as_result(source, found, **listed))
    counts = ", ".join(f"{len(places)} {kind}" for kind, places in found.items() if places)
    if counts:
        raise CheckFailed(
            f"{counts} of {len(source)} images in {config.source.data_path}, as listed above"
        )
    logger.info("all %d images are sound", len(source))


def inspect_images(source: ImageSource, config: CheckConfig) -> Findings:
    """Decode every image, in parallel, and compare them all.

    Raises:
        DataError: A loader process died.
    """
    from dino.data.inspection import Digests, InspectionDataset
    from dino.data.loaders import choose_workers, read_items
    from dino.runtime.progress import Progress

    dataset = InspectionDataset(
        source, channels=config.channels.chosen_in_chans, min_size=config.check.min_size
    )
    workers = choose_workers(
        config.source.num_workers, usual=int(chosen(config.source, "num_workers"))
    )
    digests, progress = Digests(len(source)), Progress(len(source), "checking")
    found: Findings = {"corrupt": {}, "tiny": {}, "odd": {}}
    try:
        for index, one in enumerate(
            progress.follow(read_items(dataset, workers=workers), every=EVERY)
        ):
            digests.keep(index, one.digest)
            for kind, places in found.items():
                reason = getattr(one, kind)
                if reason is not None:
                    places[index] = reason
    finally:
        progress.close()
    same = digests.find_duplicates()
    return found | {
        "duplicate": {
            later: f"equals {_shown(source.names[first])}" for later, first in same.items()
        }
    }


def _check_output(path: Path) -> None:
    """Whether the list can be written there, before long work starts."""
    from dino.data.decode import EXTENSIONS
    from dino.runtime.context import make_output_folder

    if path.is_dir() or path.suffix.lower() in EXTENSIONS:
        raise OptionError(
            f"--output {path} is a {'folder' if path.is_dir() else 'picture'}",
            remedy="name a text file",
        )
    make_output_folder(str(path.parent), "--output")


def _choose_clean(source: ImageSource, found: Findings, folder: Path) -> list[str]:
    """Lines for what is worth training on; an image that no line can name becomes a finding of its own."""
    from dino.data.image_list import name_lines

    left_out = set().union(*(found[kind] for kind in LEFT_OUT if kind in found))
    names, found["unlistable"] = [], {}
    for index, line in enumerate(name_lines(source.root, source.names, folder)):
        if index in left_out:
            continue
        if line is None:
            found["unlistable"][index] = (
                "a line break, an outer blank or bytes that are no UTF-8; rename it"
            )
        else:
            names.append(line)
    return names


def _write_clean(names: Sequence[str], path: Path, count: int) -> dict[str, Any]:
    """Write them, if there are any; gives what the result says about it."""
    from dino.files import atomic_write

    if not names:
        logger.warning("none of the %d images is worth listing: %s is not written", count, path)
        return {"output": None, "listed": 0}
    with atomic_write(path, "--output") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    logger.info(
        "%s lists %d of %d images: not those that are %s; of equal files the first, and oddly stored ones, are kept",
        *(path, len(names), count, " or ".join(LEFT_OUT)),
    )
    return {"output": str(path), "listed": len(names)}


def _report(source: ImageSource, found: Findings) -> None:
    """A line for each finding, by kind, then by name."""
    for kind, places in found.items():
        for index, reason in places.items():
            logger.info("%s: %s: %s", kind, _shown(source.names[index]), reason)


def _as_result(source: ImageSource, found: Findings, **listed: Any) -> dict[str, Any]:
    kinds = {
        kind: [{"name": source.names[index], "reason": reason} for index, reason in places.items()]
        for kind, places in found.items()
    }
    return {"images": len(source), **kinds, **listed}


def _shown(name: str) -> str:
    """A name that a terminal can show."""
    return name if name.isprintable() else ascii(name)
