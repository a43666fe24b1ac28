"""Which weights are converted, and to what."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import ReportConfig
from dino.models.config import BackboneConfig, ChannelConfig, NetworkConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True)
class OutputFileConfig:
    """Where a result goes that is one file, or a folder like one."""

    file_out: str | None = None


@dataclass(frozen=True, kw_only=True)
class TargetConfig(OutputFileConfig):
    """What becomes of weights."""

    input_size: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """Weights of one project in the form of another."""

    backbone: BackboneConfig = BackboneConfig()
    channels: ChannelConfig = ChannelConfig()
    weights: WeightsConfig = WeightsConfig()
    conversion: TargetConfig = TargetConfig()
    report: ReportConfig = ReportConfig()


@dataclass(frozen=True, kw_only=True)
class FilesConfig(OutputFileConfig):
    """From one file to another."""

    file_in: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Write the plain backbone of a checkpoint: ours, the original's, or of the published IPU code."""

    backbone: BackboneConfig = BackboneConfig()
    files: FilesConfig = FilesConfig()
    network: NetworkConfig = NetworkConfig()


@dataclass(frozen=True, kw_only=True)
class IpuCheckpointConfig:
    """Turn a checkpoint of the published IPU code into one of ours, or one of ours (or the original's) into one of it.

    python -m dino.interop.ipu IN OUT
    """

    files: FilesConfig = FilesConfig()
