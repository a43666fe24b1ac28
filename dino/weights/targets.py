"""What a converter is asked to write, refused before long work."""

from __future__ import annotations

from pathlib import Path

from dino.errors import OptionError
from dino.runtime.context import make_output_folder
from dino.runtime.metrics import check_target
from dino.weights.config import ConversionConfig, TargetConfig
from dino.weights.formats import list_formats

OURS = ".pth"
PLAIN = {".safetensors", ".bin", ".pt"}  # other endings of files of weights


def check_output(config: ConversionConfig, ending: str, *, both_ways: bool = True) -> Path:
    """Where to write, refused before long work.

    Args:
        config: The command's.
        ending: Of the files that it writes; a folder has none.
        both_ways: Whether it writes files of ours, too.

    Raises:
        OptionError: Nowhere, over what is read, or under a name that tells no form; or `json` cannot be written.
    """
    there = f"OUT{ending}" if ending else "a folder"
    wanted = f"OUT{OURS} for this project's form, or {there}" if both_ways else there
    if not config.conversion.file_out:
        raise OptionError(f"name what to write, as the second word or with `file_out`: {wanted}")
    target = Path(config.conversion.file_out)
    file = bool(ending) or target.suffix == OURS
    known = {ending, OURS} if both_ways else {ending}
    of_files = PLAIN | {each.ending for each in list_formats().values() if each.ending}
    # a folder with the ending of a file would be taken for one
    if target.suffix not in known and (ending or target.suffix in of_files):
        raise OptionError(
            f"`file_out` {target} tells no form", value=target, remedy=f"name {wanted}"
        )
    if target.is_dir() == file and target.exists():
        raise OptionError(
            f"`file_out` {target} is a {'folder' if target.is_dir() else 'file'}",
            value=target,
            remedy=f"name {wanted}",
        )
    source = Path(config.weights.pretrained_weights or "").resolve()
    if config.weights.pretrained_weights and target.resolve() in (
        (source,) if file else (source, source.parent)
    ):
        raise OptionError(
            f"`file_out` {target} is what is read, or holds it", value=target, remedy="name another"
        )
    make_output_folder(str(target.parent), "`file_out`")
    check_target(config.report.json)
    return target


def read_size(target: TargetConfig) -> tuple[int, int] | None:
    """Height and width that `input_size` asks for.

    Raises:
        OptionError: It has more numbers than two.
    """
    sizes = target.input_size
    if sizes and len(sizes) > 2:
        raise OptionError(
            f"`input_size` {' '.join(map(str, sizes))}: give height and width, or one number for both",
            value=" ".join(map(str, sizes)),
        )
    return (sizes[0], sizes[-1]) if sizes else None
