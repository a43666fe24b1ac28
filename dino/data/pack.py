"""The command: `python -m dino.data.pack IMAGE_FOLDER OUT --shard_size N`; a folder of images becomes tar shards."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from dino.errors import OptionError, exit_code
from dino.flags import PackOptions
from dino.options import name_places, parse


def main(argv: Sequence[str] | None = None) -> None:
    """Pack the images.

    Raises:
        DataError: No images there, one cannot be read, or the shards cannot be written or are those of other images.
        OptionError: No folder to pack, or none to write to.
    """
    options = parse(PackOptions, name_places(argv, "--data_path", "--output_dir"))
    if not options.source.data_path or "output_dir" not in options.explicit:
        raise OptionError("name two folders, of images and for shards: python -m dino.data.pack IMAGE_FOLDER OUT")

    from dino.data.packing import Packing, pack_images
    from dino.data.sources import holds_splits, list_images
    from dino.runtime.context import make_output_folder, set_up_logging
    from dino.runtime.metrics import write_result
    from dino.runtime.progress import Progress

    set_up_logging()
    root = Path(options.source.data_path)
    if holds_splits(root):
        raise OptionError(f"{root} holds splits; pack each by itself: python -m dino.data.pack {root}/train OUT/train")
    source, folder = list_images(root, "--data_path"), make_output_folder(options.output.output_dir)
    packing = Packing(options.pack.shard_size, options.pack.shorter_side)
    progress, shards = Progress(len(source), f"packing {source.root.name}"), []
    for shard, done in pack_images(source, folder, packing, workers=options.source.num_workers):
        shards.append(str(shard))
        progress.advance(done)
    progress.close()
    write_result(options.report.json, {"images": len(source), "shards": shards})


if __name__ == "__main__":
    sys.exit(exit_code(main))
