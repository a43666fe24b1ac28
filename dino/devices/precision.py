"""Which number format a command line means."""

from __future__ import annotations

from dino.errors import OptionError
from dino.flags import PrecisionFlags


def resolve_precision(flags: PrecisionFlags, explicit: frozenset[str], device: str) -> str:
    """Translate the old and the new flags into fp32, bf16, fp16 or ops.

    `--precision` wins; `--hmp` means ops; `--use_fp16` (on by default, as in the reference) acts on cuda only.

    Raises:
        OptionError: Two flags were given that contradict each other.
    """
    fp16_asked = "use_fp16" in explicit and flags.use_fp16 and device == "cuda"
    wanted = {
        **({f"--precision {flags.precision}": flags.precision} if flags.precision else {}),
        **({"--hmp": "ops"} if flags.hmp else {}),
        **({"--use_fp16 true": "fp16"} if fp16_asked else {}),
    }
    if len(set(wanted.values())) > 1:
        raise OptionError(f"{' and '.join(wanted)} contradict each other; give one of them")
    if flags.precision == "fp16" and "use_fp16" in explicit and not flags.use_fp16:
        raise OptionError("--precision fp16 and --use_fp16 false contradict each other; give one of them")
    default = "fp16" if device == "cuda" and flags.use_fp16 else "fp32"
    return next(iter(wanted.values()), default)
