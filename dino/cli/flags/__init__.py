"""Declares every flag of the project once, in one file per command.

Names and defaults are those of the Gaudi model reference, else of the original;
`docs/differences.md` lists the differences.
"""

from __future__ import annotations

from dino.cli.flags import (
    align,
    attention,
    convert,
    data,
    embed,
    ipu,
    knn,
    linear,
    look,
    machine,
    pretrain,
    retrieval,
    segmentation,
    shared,
)
from dino.cli.spec import Spec

FLAGS: dict[str, Spec] = {
    **align.FLAGS,
    **attention.FLAGS,
    **convert.FLAGS,
    **data.FLAGS,
    **embed.FLAGS,
    **ipu.FLAGS,
    **knn.FLAGS,
    **linear.FLAGS,
    **look.FLAGS,
    **machine.FLAGS,
    **pretrain.FLAGS,
    **retrieval.FLAGS,
    **segmentation.FLAGS,
    **shared.FLAGS,
}
