"""The card's fused attention, which only some releases have."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.devices.attention import Attend, attend_explicitly
from dino.errors import OptionError

FUSED = "aten::_scaled_dot_product_fused_attention_overrideable"  # native from 1.24 on


def choose_attention(setting: str | None) -> Attend:
    """Return the attention that `attention` asks for; written out unless it is fused.

    Raises:
        OptionError: This release of the bridge has no fused attention with a backward pass.
    """
    if setting != "fused":
        return attend_explicitly
    if not torch._C._dispatch_has_kernel_for_dispatch_key(FUSED, "HPU"):
        raise OptionError(
            "`attention` fused needs a Habana bridge of 1.24 or later: "
            f"this one has no kernel for {FUSED}",
            value=setting,
            remedy="leave it out",
        )
    return _attend_fused


def _attend_fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The bridge chooses its kernel only if all others are disabled."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with sdpa_kernel([SDPBackend.OVERRIDEABLE]):
        mixed: Tensor = F.scaled_dot_product_attention(query, key, value)
        return mixed
