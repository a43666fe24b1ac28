"""Settings for how processes find each other, and for commands that run a frozen backbone."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import ReportConfig, setting
from dino.data.config import PixelConfig
from dino.devices.config import DeviceConfig
from dino.models.config import BackboneConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the processes of one run find each other; the launcher's environment has the rest.

    Attributes:
        hang_timeout: Seconds after which a silent process ends the run; 0 = never.
    """

    dist_url: str = "env://"
    local_rank: int = 0
    hang_timeout: float = setting(120.0, least=0)


@dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    """Settings shared by all commands that run a frozen backbone."""

    device: DeviceConfig = DeviceConfig()
    launch: LaunchConfig = LaunchConfig()
    backbone: BackboneConfig = BackboneConfig()
    weights: WeightsConfig = WeightsConfig()
    pixels: PixelConfig = PixelConfig()
    report: ReportConfig = ReportConfig()
