"""`dino check`: list images that are corrupt, tiny, odd or duplicates."""

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
from dino.data.config import PixelConfig, SourceConfig
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
    """One loader process per core, up to 64."""

    num_workers: int | None = derived(64, least=0)


@dataclass(frozen=True, kw_only=True)
class InspectionConfig:
    """Which images are reported, and where the others are listed."""

    min_size: int = setting(16, least=1)
    clean_list: str | None = None


@dataclass(frozen=True, kw_only=True)
class CheckConfig:
    """Decode every image of a folder or list; report corrupt, tiny, odd and duplicate images.

    The exit code is 1 if there is any such image.
    """

    source: SourceConfig = ManyWorkersConfig()
    channels: ChannelConfig = ChannelConfig()
    pixels: PixelConfig = PixelConfig()
    check: InspectionConfig = InspectionConfig()
    report: ReportConfig = ReportConfig()


Findings = dict[str, dict[int, str]]  # kind -> index of the image -> reason
# Left out of a clean list; odd images are kept, since they decode.
LEFT_OUT = ("corrupt", "tiny", "duplicate", "unlistable")
EVERY = 1000  # images between two progress lines


def main(argv: Sequence[str] | None = None) -> None:
    """Check the images; list the clean ones if `--output` is given.

    Raises:
        CheckFailed: Some images are not clean.
        DataError: There are no images, or a loader process died.
        OptionError: The list cannot be written.
    """
    config = parse(CheckConfig, positional_to_flags(argv, "--data_path"), ABOUT)

    from dino.data.sources import open_images
    from dino.runtime.metrics import write_result

    set_up_logging()
    output = config.check.clean_list
    if output:
        _check_output(Path(output))
    source = open_images(config.source.data_path).ranged(config.pixels.pixel_range)
    logger.info("images: %s", source.describe())
    if output and source.members:
        raise DataError(
            f"--output lists files, and the images in {source.root} are in shards or tables",
            remedy="leave it out, or check the folder from which they were made",
        )
    refused = _find_refusal(config.source.data_path)
    if refused:
        logger.warning("training would refuse this: %s", refused)
    findings = inspect_images(source, config)
    names = _choose_clean(source, findings, Path(output).parent) if output else []
    _report(source, findings)
    listed = _write_clean(names, Path(output), len(source)) if output else {}
    seen = {"passed_over": source.passed, "refused": refused}
    more = {name: value for name, value in seen.items() if value}
    write_result(config.report.json, _as_result(source, findings, **listed, **more))
    counts = ", ".join(f"{len(reasons)} {kind}" for kind, reasons in findings.items() if reasons)
    if counts:
        raise CheckFailed(
            f"{counts} of {len(source)} images in {config.source.data_path}, as listed above"
        )
    logger.info("all %d images are sound", len(source))


def inspect_images(source: ImageSource, config: CheckConfig) -> Findings:
    """Decode every image in parallel, and find duplicates.

    Raises:
        DataError: A loader process died.
    """
    from dino.data.inspection import Digests, InspectionDataset
    from dino.data.listing import show
    from dino.data.loaders import choose_workers, read_items
    from dino.runtime.progress import Progress

    dataset = InspectionDataset(
        source, channels=config.channels.chosen_in_chans, min_size=config.check.min_size
    )
    workers = choose_workers(
        config.source.num_workers, usual=int(chosen(config.source, "num_workers"))
    )
    digests, progress = Digests(len(source)), Progress(len(source), "checking")
    findings: Findings = {"corrupt": {}, "tiny": {}, "odd": {}}
    try:
        for index, one in enumerate(
            progress.follow(read_items(dataset, workers=workers), every=EVERY)
        ):
            digests.keep(index, one.digest)
            for kind, reasons in findings.items():
                reason = getattr(one, kind)
                if reason is not None:
                    reasons[index] = reason
    finally:
        progress.close()
    same = digests.find_duplicates()
    return findings | {
        "duplicate": {later: f"equals {show(source.names[first])}" for later, first in same.items()}
    }


def _find_refusal(data_path: str | None) -> str | None:
    """Why training does not take the images, or None."""
    from dino.data.sources import open_training_source

    try:
        open_training_source(data_path)
    except DataError as error:
        return str(error)
    return None


def _check_output(path: Path) -> None:
    """Check that the list can be written there, before long work starts."""
    from dino.data.decode import EXTENSIONS
    from dino.runtime.context import make_output_folder

    if path.is_dir() or path.suffix.lower() in EXTENSIONS:
        raise OptionError(
            f"--output {path} is a {'folder' if path.is_dir() else 'picture'}",
            remedy="name a text file",
        )
    make_output_folder(str(path.parent), "--output")


def _choose_clean(source: ImageSource, found: Findings, folder: Path) -> list[str]:
    """Return list lines of the clean images; report as "unlistable" what no line can name."""
    from dino.data.image_list import name_lines

    left_out = set().union(*(found[kind] for kind in LEFT_OUT if kind in found))
    names, found["unlistable"] = [], {}
    for index, line in enumerate(name_lines(source.root, source.names, folder)):
        if index in left_out:
            continue
        if line is None:
            found["unlistable"][index] = (
                "its name has a line break, an outer blank or bytes that are not UTF-8; rename it"
            )
        else:
            names.append(line)
    return names


def _write_clean(names: Sequence[str], path: Path, count: int) -> dict[str, Any]:
    """Write the names, if there are any; return the entries for the result."""
    from dino.files import atomic_write

    if not names:
        logger.warning("none of the %d images is clean: %s is not written", count, path)
        return {"output": None, "listed": 0}
    with atomic_write(path, "--output") as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    logger.info(
        "%s lists %d of %d images: those that are %s are left out; the first of equal files and "
        "oddly stored images are kept",
        *(path, len(names), count, " or ".join(LEFT_OUT)),
    )
    return {"output": str(path), "listed": len(names)}


def _report(source: ImageSource, found: Findings) -> None:
    """Log one line per finding, by kind, then by name."""
    from dino.data.listing import show

    for kind, reasons in found.items():
        for index, reason in reasons.items():
            logger.info("%s: %s: %s", kind, show(source.names[index]), reason)


def _as_result(source: ImageSource, found: Findings, **more: Any) -> dict[str, Any]:
    kinds = {
        kind: [{"name": source.names[index], "reason": reason} for index, reason in reasons.items()]
        for kind, reasons in found.items()
    }
    return {"images": len(source), **kinds, **more}
