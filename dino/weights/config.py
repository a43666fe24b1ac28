"""Settings of the commands that convert weights."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import ReportConfig, setting
from dino.models.config import BackboneConfig, ChannelConfig, NetworkConfig, WeightsConfig


@dataclass(frozen=True, kw_only=True)
class OutputFileConfig:
    """Output path: one file, or one folder."""

    file_out: str | None = None


@dataclass(frozen=True, kw_only=True)
class TargetConfig(OutputFileConfig):
    """Target of a conversion."""

    input_size: tuple[int, ...] | None = setting(None, least=1)


@dataclass(frozen=True, kw_only=True)
class ConversionConfig:
    """Convert the weights of one project to the format of another."""

    backbone: BackboneConfig = BackboneConfig()
    channels: ChannelConfig = ChannelConfig()
    weights: WeightsConfig = WeightsConfig()
    conversion: TargetConfig = TargetConfig()
    report: ReportConfig = ReportConfig()


@dataclass(frozen=True, kw_only=True)
class FilesConfig(OutputFileConfig):
    """Input file and output file."""

    file_in: str | None = None


@dataclass(frozen=True, kw_only=True)
class ExtractConfig:
    """Write the plain backbone of a checkpoint: ours, the original's or the IPU code's."""

    backbone: BackboneConfig = BackboneConfig()
    files: FilesConfig = FilesConfig()
    network: NetworkConfig = NetworkConfig()


@dataclass(frozen=True, kw_only=True)
class IpuCheckpointConfig:
    """Turn a checkpoint of the published IPU code into one of ours (or the original's), or back."""

    files: FilesConfig = FilesConfig()
