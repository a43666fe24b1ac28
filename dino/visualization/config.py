"""Settings of attention maps and videos."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import OutputConfig, derived, setting
from dino.models.config import BackboneConfig, SmallPatchConfig
from dino.runtime.config import FrozenConfig


@dataclass(frozen=True, kw_only=True)
class MaskConfig:
    """How attention maps are thresholded."""

    threshold: float | None = setting(None, least=0, most=1)


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Which images to draw attention maps of."""

    image_path: tuple[str, ...] | None = None
    image_size: tuple[int, ...] = setting((480, 480), least=1)


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(FrozenConfig):
    """Draw the CLS attention of a vision transformer: one map per head of the last block."""

    backbone: BackboneConfig = SmallPatchConfig()
    pictures: PictureConfig = PictureConfig()
    mask: MaskConfig = MaskConfig()
    output: OutputConfig = OutputConfig()


@dataclass(frozen=True, kw_only=True)
class VideoConfig:
    """How frames become a video."""

    input_path: str | None = None
    output_path: str = "./"
    resize: tuple[int, ...] | None = setting(None, least=1)
    video_only: bool = False
    fps: float | None = derived(30.0, least=0.1, most=1000)
    video_format: str = setting("mp4", choices=("mp4", "avi"))


@dataclass(frozen=True, kw_only=True)
class AttentionVideoConfig(FrozenConfig):
    """Make a video of the CLS attention of a vision transformer, averaged over the heads."""

    backbone: BackboneConfig = SmallPatchConfig()
    video: VideoConfig = VideoConfig()
    mask: MaskConfig = MaskConfig()
