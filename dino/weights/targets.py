"""Check the output of a converter before long work."""

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
    """Return the output path, after all checks.

    Args:
        config: Settings of the command.
        ending: Ending of the files that the command writes; empty for a folder.
        both_ways: Whether the command also writes this project's files.

    Raises:
        OptionError: The output is not named, is the input, or has an unsupported ending; or `json`
            cannot be written.
    """
    theirs = f"OUT{ending}" if ending else "a folder"
    allowed = f"OUT{OURS} for this project's form, or {theirs}" if both_ways else theirs
    if not config.conversion.file_out:
        raise OptionError(f"name the output, as the second word or with `file_out`: {allowed}")
    target = Path(config.conversion.file_out)
    is_file = bool(ending) or target.suffix == OURS
    endings = {ending, OURS} if both_ways else {ending}
    of_files = PLAIN | {form.ending for form in list_formats().values() if form.ending}
    # A folder with the ending of a file would be taken for a file.
    if target.suffix not in endings and (ending or target.suffix in of_files):
        raise OptionError(
            f"`file_out` {target} has an unsupported ending", value=target, remedy=f"name {allowed}"
        )
    if target.is_dir() == is_file and target.exists():
        raise OptionError(
            f"`file_out` {target} is a {'folder' if target.is_dir() else 'file'}",
            value=target,
            remedy=f"name {allowed}",
        )
    source = Path(config.weights.pretrained_weights or "").resolve()
    inputs = (source,) if is_file else (source, source.parent)
    if config.weights.pretrained_weights and target.resolve() in inputs:
        raise OptionError(
            f"`file_out` {target} is the input, or holds it", value=target, remedy="name another"
        )
    make_output_folder(str(target.parent), "`file_out`")
    check_target(config.report.json)
    return target


def read_size(target: TargetConfig) -> tuple[int, int] | None:
    """Return the height and width of `input_size`.

    Raises:
        OptionError: It has more than two numbers.
    """
    sizes = target.input_size
    if sizes and len(sizes) > 2:
        raise OptionError(
            "`input_size` must be height and width, or one number for both "
            f"(got {' '.join(map(str, sizes))})",
            value=" ".join(map(str, sizes)),
        )
    return (sizes[0], sizes[-1]) if sizes else None
