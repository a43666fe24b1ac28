"""Find the number format that the settings select."""

from __future__ import annotations

from dataclasses import replace

from dino.devices.config import PrecisionConfig
from dino.errors import OptionError

SAME = {"float32": "fp32", "float16": "fp16"}  # the published IPU code's names


def resolve_precision(config: PrecisionConfig, device: str) -> str:
    """Resolve the old and the new settings to fp32, bf16, fp16 or ops, or to one of ipu's formats.

    `precision` wins. `hmp` means ops. `use_fp16` (on by default, as in the reference) affects cuda
    only.

    Raises:
        OptionError: Two settings contradict each other, or the device does not have the format.
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
    requests = {
        **({f"`precision` {config.precision}": config.precision} if config.precision else {}),
        **({"`hmp`": "ops"} if config.hmp else {}),
        **({"`use_fp16` true": "fp16"} if fp16_asked else {}),
    }
    if len(set(requests.values())) > 1:
        raise OptionError(
            f"{' and '.join(requests)} contradict each other", remedy="give one of them"
        )
    if config.precision == "fp16" and config.use_fp16 is False:
        raise OptionError(
            "`precision` fp16 and `use_fp16` false contradict each other", remedy="give one of them"
        )
    default = "fp16" if device == "cuda" and config.use_fp16 is not False else "fp32"
    return next(iter(requests.values()), default)


def _resolve_whole(config: PrecisionConfig) -> str:
    names = {"fp32": "float32", "fp16": "float16"}
    resolved = config.precision or "float32"
    resolved = "ops" if config.hmp else names.get(resolved, resolved)
    if resolved not in ("float32", "float16", "masterweight"):
        asked = "`hmp`" if config.hmp else f"`precision` {resolved}"
        raise OptionError(
            f"{asked} is not supported on `device` ipu",
            remedy="give `precision` float32, float16 or masterweight",
        )
    return resolved
