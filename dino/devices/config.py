"""What devices are asked: which one, in which number format, how a whole step is compiled."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import derived


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where the work runs."""

    device: str | None = None
    lazy_mode: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """In which number formats training computes; the optimiser is always fp32."""

    precision: str | None = None
    use_fp16: bool | None = derived(True)
    hmp: bool = False
    hmp_bf16: str = "ops_bf16.txt"
    hmp_fp32: str = "ops_fp32.txt"
    hmp_opt_level: str = "O1"
    hmp_verbose: bool = False
    compile: bool | None = None


@dataclass(frozen=True, kw_only=True)
class IpuConfig:
    """What only a device asks that compiles the whole step (ipu); names and defaults of the published IPU code."""

    pipeline: tuple[int, ...] | None = None
    replica: int = 1
    ga: int | None = None
    di: int = 1
    rts: bool = True
    ipu_per_replica: int = 8
    output_mode: str = "all"
    async_type: str = "normal"
    rebatched_worker_size: int = 128
    loss_scale: float | None = None
    executable_cache_dir: str = "./cachedir"
    ema_so: str | None = None
    gelu_type: str = "erf"
    set_freq: int = 1
