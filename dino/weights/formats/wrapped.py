"""Several networks in one dictionary, as Lightning, DINOv2's FSDP, MoCo and solo-learn save them.

Prefixes that a single network has (`module.`, `_orig_mod.`, ...) are stripped from any file
(`dino/stored.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from dino.weights.formats import Contents, Format

if TYPE_CHECKING:
    from torch import Tensor

# In the order of choice: first the teacher, as in our own files, then what each project's own
# evaluation reads.
NETWORKS = (
    *("teacher", "student", "encoder_q", "base_encoder", "online_encoder", "backbone"),
    *("encoder_k", "momentum_encoder", "target_encoder", "momentum_backbone"),
)
BRANCH = re.compile(
    r"(?:(?:module|model|net|network|_orig_mod|_fsdp_wrapped_module)\.)*"
    rf"({'|'.join(NETWORKS)})(_backbone|_head)?\.(?=.)"
)
KEYS = ("module", "model_state_dict", "net", "network", "backbone")
HEADS = r"(dino_head|ibot_head)\."  # of DINOv2, next to a backbone


def split(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Split a dictionary by the first words of its names; empty for a single network.

    Heads are under `head.`. Tensors of no network (a queue, a classifier) are left out.
    """
    networks: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        found = BRANCH.match(str(name))
        if found:
            part = "head." if found[2] == "_head" else ""
            networks.setdefault(found[1], {})[part + name[found.end() :]] = tensor
    # A lone tensor is a part that happens to have such a name, and so is a lone `backbone.`.
    held = [name for name in NETWORKS if len(networks.get(name, ())) > 1]
    return {name: networks[name] for name in held} if held not in ([], ["backbone"]) else {}


def name_kind(contents: Contents) -> str:
    """Name a file with such a dictionary."""
    held = (contents.state, *contents.state.values())
    is_known = any(isinstance(part, Mapping) and split(part) for part in held)
    return "networks of another project in one dictionary" if is_known else ""


FORMAT = Format(rank=8, split=split, keys=KEYS, beside=HEADS, kind=name_kind)
