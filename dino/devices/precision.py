"""Which number format a command line means."""

from __future__ import annotations

from dataclasses import replace

from dino.errors import OptionError
from dino.flags import PrecisionFlags

SAME = {"float32": "fp32", "float16": "fp16"}  # the published IPU code's names


def resolve_precision(flags: PrecisionFlags, explicit: frozenset[str], device: str) -> str:
    """Translate the old and the new flags into fp32, bf16, fp16 or ops; for ipu, into that device's own three names.

    `--precision` wins; `--hmp` means ops; `--use_fp16` (on by default, as in the reference) acts on cuda only.

    Raises:
        OptionError: Two flags were given that contradict each other, or a format that the device does not have.
    """
    if device == "ipu":
        return _resolve_whole(flags)
    if flags.precision == "masterweight":
        raise OptionError(f"--precision masterweight is for --device ipu only; on {device} try bf16")
    if flags.precision in SAME:
        flags = replace(flags, precision=SAME[flags.precision])
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


def _resolve_whole(flags: PrecisionFlags) -> str:
    names = {"fp32": "float32", "fp16": "float16"}
    wanted = flags.precision or "float32"
    wanted = "ops" if flags.hmp else names.get(wanted, wanted)
    if wanted not in ("float32", "float16", "masterweight"):
        flag = "--hmp" if flags.hmp else f"--precision {wanted}"
        raise OptionError(f"{flag} is not there on --device ipu; give --precision float32, float16 or masterweight")
    return wanted
