"""Which number format the settings mean."""

from __future__ import annotations

from dataclasses import replace

from dino.devices.config import PrecisionConfig
from dino.errors import OptionError

SAME = {"float32": "fp32", "float16": "fp16"}  # the published IPU code's names


def resolve_precision(config: PrecisionConfig, device: str) -> str:
    """Translate the old and the new settings into fp32, bf16, fp16 or ops; for ipu, into that device's own three names.

    `precision` wins; `hmp` means ops; `use_fp16` (on by default, as in the reference) acts on cuda only.

    Raises:
        OptionError: Two settings were given that contradict each other, or a format that the device does not have.
    """
    if device == "ipu":
        return _resolve_whole(config)
    if config.precision == "masterweight":
        raise OptionError(
            "`precision` masterweight is for `device` ipu only", remedy=f"on {device} try bf16"
        )
    if config.precision in SAME:
        config = replace(config, precision=SAME[config.precision])
    fp16_asked = config.use_fp16 and device == "cuda"
    wanted = {
        **({f"`precision` {config.precision}": config.precision} if config.precision else {}),
        **({"`hmp`": "ops"} if config.hmp else {}),
        **({"`use_fp16` true": "fp16"} if fp16_asked else {}),
    }
    if len(set(wanted.values())) > 1:
        raise OptionError(
            f"{' and '.join(wanted)} contradict each other", remedy="give one of them"
        )
    if config.precision == "fp16" and config.use_fp16 is False:
        raise OptionError(
            "`precision` fp16 and `use_fp16` false contradict each other", remedy="give one of them"
        )
    default = "fp16" if device == "cuda" and config.use_fp16 is not False else "fp32"
    return next(iter(wanted.values()), default)


def _resolve_whole(config: PrecisionConfig) -> str:
    names = {"fp32": "float32", "fp16": "float16"}
    wanted = config.precision or "float32"
    wanted = "ops" if config.hmp else names.get(wanted, wanted)
    if wanted not in ("float32", "float16", "masterweight"):
        asked = "`hmp`" if config.hmp else f"`precision` {wanted}"
        raise OptionError(
            f"{asked} is not there on `device` ipu",
            remedy="give `precision` float32, float16 or masterweight",
        )
    return wanted
