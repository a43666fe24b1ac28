"""`dino pack`: pack a folder or tables of images into tar shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino.cli.options import parse_command, positional_to_flags
from dino.cli.parser import Help
from dino.cli.session import set_up_logging
from dino.config import OutputConfig, ReportConfig, chosen, derived, setting
from dino.data.config import SourceConfig
from dino.errors import OptionError

ABOUT = Help(
    places="IMAGE_FOLDER OUT",
    example="dino pack photos shards --shard_size 1000",
    required=(
        "data_path",
        "output_dir",
    ),
)


@dataclass(frozen=True, kw_only=True)
class FewWorkersConfig(SourceConfig):
    """Processes that scale images."""

    num_workers: int | None = derived(4, least=0)


@dataclass(frozen=True, kw_only=True)
class ShardConfig:
    """How images are packed into shards."""

    shard_size: int = setting(1000, least=1)
    shorter_side: int | None = setting(None, least=1)


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Pack images into tar shards, for training and for the webdataset library.

    After an interruption the same command continues.
    """

    source: SourceConfig = FewWorkersConfig()
    output: OutputConfig = OutputConfig()
    pack: ShardConfig = ShardConfig()
    report: ReportConfig = ReportConfig()


def main(argv: Sequence[str] | None = None) -> None:
    """Pack the images.

    Raises:
        DataError: There are no images, an image cannot be read, the shards cannot be written, or
            they hold other images.
        OptionError: The folder to pack or the folder to write to is missing.
    """
    config, given, _ = parse_command(
        PackConfig, positional_to_flags(argv, "--data_path", "--output_dir"), about=ABOUT
    )
    if not config.source.data_path or "output_dir" not in given:
        raise OptionError(
            "name the folder of images and the folder for shards: "
            "python -m dino.data.pack IMAGE_FOLDER OUT"
        )

    from dino.data.packing import Packing, pack_images
    from dino.data.shard_sources import divide_shards
    from dino.data.sources import open_images
    from dino.data.splits import holds_splits
    from dino.data.tables import find_splits, name_tables
    from dino.runtime.context import make_output_folder
    from dino.runtime.metrics import write_result
    from dino.runtime.progress import Progress

    set_up_logging()
    root = Path(config.source.data_path)
    tables = find_splits(root)
    if holds_splits(root) or len(tables) > 1:
        first = f"{root}/train" if holds_splits(root) else name_tables(tables)
        raise OptionError(
            f"{root} holds splits",
            remedy=f"pack each split separately: python -m dino.data.pack {first} OUT/train",
        )
    source = open_images(config.source.data_path)
    packed = source.members.shards if source.members else ()
    if len(divide_shards([shard for shard, _ in packed])) > 1:
        raise OptionError(f"{root} names the shards of splits", remedy="pack each split separately")
    folder = make_output_folder(config.output.output_dir)
    packing = Packing(config.pack.shard_size, config.pack.shorter_side)
    progress, shards = Progress(len(source), f"packing {source.root.name}"), []
    for shard, done in pack_images(
        source, folder, packing, workers=int(chosen(config.source, "num_workers"))
    ):
        shards.append(str(shard))
        progress.advance(done)
    progress.close()
    write_result(config.report.json, {"images": len(source), "shards": shards})
