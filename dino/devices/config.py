"""Settings of devices: which one, its number format, and how a whole step is compiled."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import derived, setting


@dataclass(frozen=True, kw_only=True)
class DeviceConfig:
    """Where the work runs."""

    device: str | None = setting(None, choices=("hpu", "cuda", "cpu", "ipu"))
    lazy_mode: bool | None = None


@dataclass(frozen=True, kw_only=True)
class PrecisionConfig:
    """The number formats of training; the optimizer is always fp32."""

    precision: str | None = setting(
        None, choices=("fp32", "bf16", "fp16", "ops", "float32", "float16", "masterweight")
    )
    use_fp16: bool | None = derived(True)
    hmp: bool = False
    hmp_bf16: str = "ops_bf16.txt"
    hmp_fp32: str = "ops_fp32.txt"
    hmp_opt_level: str = setting("O1", choices=("O1", "O2"))
    hmp_verbose: bool = False
    compile: bool | None = None
    attention: str | None = setting(None, choices=("explicit", "fused"))


@dataclass(frozen=True, kw_only=True)
class IpuConfig:
    """Settings of a device that compiles the whole step (ipu).

    Names and defaults are those of the published IPU code.
    """

    pipeline: tuple[int, ...] | None = setting(None, least=0)
    replica: int = setting(1, least=1)
    ga: int | None = setting(None, least=1)
    di: int = setting(1, least=1)
    rts: bool = True
    ipu_per_replica: int = setting(8, least=1)
    output_mode: str = setting("all", choices=("all", "final"))
    async_type: str = setting("normal", choices=("async", "rebatch", "normal"))
    rebatched_worker_size: int = setting(128, least=1)
    loss_scale: float | None = setting(None, least=1e-06)
    executable_cache_dir: str = "./cachedir"
    ema_so: str | None = None
    gelu_type: str = setting("erf", choices=("erf", "tanh"))
    set_freq: int = setting(1, least=1)
