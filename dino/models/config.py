"""Which network to build, and where its weights come from."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import chosen, derived

# Prefixes of weights by name: the published ones, and those of timm's hub.
HUB_PREFIX, TIMM_PREFIX = "hub:", "timm:"


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """Which network; None is taken from the weights file, else it is the reference value."""

    arch: str | None = derived("vit_small")
    patch_size: int | None = derived(16, least=1)

    @property
    def chosen_arch(self) -> str:
        """The architecture if no file specifies it."""
        return str(chosen(self, "arch"))

    @property
    def chosen_patch_size(self) -> int:
        """Patch size in pixels if no file specifies it."""
        return int(chosen(self, "patch_size"))


@dataclass(frozen=True, kw_only=True)
class SmallPatchConfig(BackboneConfig):
    """A network with patches of 8 pixels unless specified otherwise."""

    patch_size: int | None = derived(8, least=1)


@dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """The channels of an image."""

    in_chans: int | None = derived(3, least=1)

    @property
    def chosen_in_chans(self) -> int:
        """Number of channels if no file specifies it."""
        return int(chosen(self, "in_chans"))


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network of a checkpoint to use."""

    checkpoint_key: str = "teacher"


@dataclass(frozen=True, kw_only=True)
class WeightsFileConfig:
    """The file that weights are read from."""

    pretrained_weights: str | None = None


@dataclass(frozen=True, kw_only=True)
class WeightsConfig(WeightsFileConfig, NetworkConfig):
    """Which trained backbone an evaluation uses."""

    random_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """A linear layer that is already trained."""

    pretrained_linear: str | None = None
