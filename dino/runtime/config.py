"""How processes find each other; what every command that runs a frozen backbone asks."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import ReportConfig
from dino.devices.config import DeviceConfig
from dino.models.config import BackboneConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """How the processes of one run find each other; the launcher's environment says the rest."""

    dist_url: str = "env://"
    local_rank: int = 0


@dataclass(frozen=True, kw_only=True)
class FrozenConfig:
    """What every command that runs a frozen backbone asks."""

    device: DeviceConfig = DeviceConfig()
    launch: LaunchConfig = LaunchConfig()
    backbone: BackboneConfig = BackboneConfig()
    weights: WeightsConfig = WeightsConfig()
    report: ReportConfig = ReportConfig()
