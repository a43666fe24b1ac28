"""Which images to read, how to read them, and how to crop them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dino.config import derived, setting


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Multi-crop: two global views and several local ones (paper, section 3.1)."""

    global_crops_scale: tuple[float, float] = (0.4, 1.0)
    local_crops_number: int = setting(8, least=0)
    local_crops_scale: tuple[float, float] = (0.05, 0.4)
    global_crops_size: int = setting(224, least=1)
    local_crops_size: int = setting(96, least=1)


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Which images to read, and with how many workers."""

    data_path: str | None = None
    num_workers: int | None = derived(10, least=0)


@dataclass(frozen=True, kw_only=True)
class DataConfig(SourceConfig):
    """Which images to read, and how to batch them."""

    batch_size_per_device: int = setting(32, least=1)


@dataclass(frozen=True, kw_only=True)
class PixelConfig:
    """What the levels of pictures mean."""

    pixel_range: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """How many of the images to use."""

    data_limit: int | None = setting(None, least=1)


@dataclass(frozen=True, kw_only=True)
class TrainDataConfig(LimitConfig, PixelConfig):
    """Settings that only training has for its images."""

    mean: tuple[float, ...] | Literal["auto"] | None = None
    std: tuple[float, ...] | Literal["auto"] | None = None
    on_bad_image: str = setting("raise", choices=("raise", "skip"))
    augment_on: str = setting("device", choices=("device", "host"))
    synthetic_data: bool = False
