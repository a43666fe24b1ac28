"""What a network of timm or torchvision does with images, found out on torch's meta device.

Tensors there have shapes and no values, so even a large network costs no memory and little time.
"""

from __future__ import annotations

import textwrap
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from dino.errors import DinoError, OptionError
from dino.models.registry import build_backbone, width_of

LONGEST_REASON = 200  # characters kept of another library's message
FEW = 2  # images of a pass that needs values


class SeenRandom(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's hook is untyped
    """Counts the operators inside that used a random generator."""

    count = 0

    def __init__(self) -> None:
        """Start with no random operator seen."""
        super().__init__()  # type: ignore[no-untyped-call]  # torch's dispatch modes are untyped

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count the operator if it is random, then run it."""
        self.count += torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


class Probe:
    """An untrained network in training mode that runs for its shapes only."""

    def __init__(self, arch: str, *, in_chans: int = 3, drop_path_rate: float = 0.0) -> None:
        """Build the network; see `build_backbone`.

        Raises:
            OptionError: It cannot be built, or only together with an image.
        """
        self.arch, self.in_chans, self.drop_path_rate = arch, in_chans, drop_path_rate
        self.device = torch.device("meta")
        try:
            self.network = self._build_on_meta()
        except DinoError:
            raise
        except Exception as error:
            raise OptionError(
                f"`arch` {arch} cannot be built: {_shorten(error)}", value=arch
            ) from error
        if any(map(is_lazy, [*self.network.parameters(), *self.network.buffers()])):
            raise OptionError(f"`arch` {arch} gets its sizes from its first image", value=arch)

    def check_pass(self, images: int, side: int) -> int:
        """Check that a training pass over square images gives one vector for each.

        Args:
            images: How many there are in one pass.
            side: Their side in pixels.

        Returns:
            How many operators used a random generator.

        Raises:
            OptionError: It does not; the message says why.
        """
        seen = SeenRandom()
        try:
            with seen:
                features = self.run(images, side)
        except Exception as error:
            raise self._explain(error, images, side) from error
        width, got = width_of(self.network), f"a {type(features).__name__}"
        if isinstance(features, Tensor):
            if features.is_floating_point() and features.shape[1:] == (width,):
                return seen.count
            got = f"{tuple(features.shape)} {str(features.dtype).removeprefix('torch.')}"
        raise OptionError(
            f"`arch` {self.arch} gives {got} for {images} images, not {width} real numbers each",
            value=self.arch,
        )

    def run(self, images: int, side: int) -> Any:
        """Run on (images, C, side, side); on a few if the network has to see values."""
        shape = (self.in_chans, side, side)
        with torch.no_grad():
            if self.device.type == "meta":
                try:
                    return self.network(torch.empty(images, *shape, device="meta"))
                except Exception as error:
                    if not _needs_values(error):
                        raise
                self.network, self.device = self._build(), torch.device("cpu")
            return self.network(torch.zeros(min(images, FEW), *shape))

    def _explain(self, error: Exception, images: int, side: int) -> OptionError:
        """Say whether more images at a time would help, as with batch norm."""
        try:
            self.run(2 * images, side)
        except Exception:  # noqa: BLE001 - as the first
            what, remedy = f"cannot take {side}-pixel crops", "change their size, or the network"
        else:
            what = f"cannot train on {images} crop{'s' * (images > 1)} of {side} pixels at a time"
            remedy = "raise `batch_size_per_device`"
        return OptionError(
            f"`arch` {self.arch} {what}: {_shorten(error)}", value=self.arch, remedy=remedy
        )

    def _build(self) -> nn.Module:
        return build_backbone(
            self.arch, in_chans=self.in_chans, drop_path_rate=self.drop_path_rate
        ).train()

    def _build_on_meta(self) -> nn.Module:
        try:
            with torch.device("meta"):
                return self._build()
        except Exception as error:
            if not _needs_values(error):
                raise
        return self._build().to("meta")


def check_depth(arch: str, rate: float, *, in_chans: int, side: int) -> None:
    """Check that `drop_path_rate` makes a training pass draw more than without.

    Raises:
        OptionError: It does not.
    """
    some, none = (
        Probe(arch, in_chans=in_chans, drop_path_rate=each).check_pass(FEW, side)
        for each in (rate, 0.0)
    )
    if some <= none:
        raise OptionError(
            f"`drop_path_rate` {rate:g} does nothing: `arch` {arch} has no stochastic depth",
            value=rate,
            remedy="leave it out, or set it to 0",
        )


def _needs_values(error: Exception) -> bool:
    """Whether a network failed only because tensors on the meta device have no values."""
    return isinstance(error, NotImplementedError) or "meta" in str(error)


def _shorten(error: Exception) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, LONGEST_REASON)
