"""Which network, and where its weights come from."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import chosen, derived

HUB_PREFIX, TIMM_PREFIX = (
    "hub:",
    "timm:",
)  # of weights by name: the published ones, those of timm's hub


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network; a value of None is taken from the weights file, else it is the reference's."""

    arch: str | None = derived("vit_small")
    patch_size: int | None = derived(16, least=1)

    @property
    def chosen_arch(self) -> str:
        """The architecture where no file tells it."""
        return str(chosen(self, "arch"))

    @property
    def chosen_patch_size(self) -> int:
        """Pixels, where no file tells it."""
        return int(chosen(self, "patch_size"))


@dataclass(frozen=True, kw_only=True)
class SmallPatchConfig(BackboneConfig):
    """Patches of 8 pixels, where nothing says otherwise."""

    patch_size: int | None = derived(8, least=1)


@dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """What an image is made of."""

    in_chans: int | None = derived(3, least=1)

    @property
    def chosen_in_chans(self) -> int:
        """Channels, where no file tells it."""
        return int(chosen(self, "in_chans"))


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which of a checkpoint's networks."""

    checkpoint_key: str = "teacher"


@dataclass(frozen=True, kw_only=True)
class WeightsFileConfig:
    """Where weights are read from."""

    pretrained_weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(WeightsFileConfig, NetworkConfig):
    """Which trained backbone an evaluation reads."""

    random_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """A linear layer that is there already."""

    pretrained_linear: str | None = None
