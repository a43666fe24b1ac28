"""Checkpoints of the published IPU code: `python -m dino.interop.ipu IN OUT`, both ways."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from dino.errors import exit_code
from dino.flags import IpuCheckpointOptions
from dino.options import name_places, parse

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> None:
    """Convert in the direction that the file itself tells.

    Raises:
        DinoError: It is neither, or a file cannot be read or written.
    """
    options = parse(IpuCheckpointOptions, name_places(argv, "--weights", "--output"))

    from dino import checkpoint
    from dino.interop.ipu_checkpoint import is_published, read_published, write_published
    from dino.interop.plain import name_files
    from dino.models.arrival import admit
    from dino.runtime.context import set_up_logging

    set_up_logging()
    source, target = name_files(options.files)
    state = admit(checkpoint.load_file(source), source)
    theirs = is_published(state)
    checkpoint.save_file(target, read_published(state) if theirs else write_published(state))
    logger.info("%s: %s, of the other form in %s", target, "ours" if theirs else "of the published IPU code", source)


if __name__ == "__main__":
    sys.exit(exit_code(main))
