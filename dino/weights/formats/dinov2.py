"""DINOv2 and DINOv3: vision transformers that are recognized and are not those of this project.

Their blocks scale each branch, and some have register tokens, gated layers or rotary positions.
"""

from __future__ import annotations

from dino.weights.formats import Contents, Format

MARKS = {  # end of a tensor's name, by what it is a part of; the first that is found counts
    "rope_embed.periods": "DINOv3, a vision transformer with rotary positions",
    "storage_tokens": "DINOv3, a vision transformer with register tokens",
    "register_tokens": "DINOv2, a vision transformer with register tokens",
    "reg_token": "timm, a vision transformer with register tokens",
    ".layer_scale1.lambda1": "Hugging Face, DINOv2 of the transformers library",
    ".mlp.w12.weight": "DINOv2, a vision transformer with gated (SwiGLU) layers",
    ".ls1.gamma": "DINOv2, a vision transformer with layer scale",
}


def name_kind(contents: Contents) -> str:
    """Name a file of these networks by the tensors that ours do not have."""
    return next(
        (
            f"{kind}, which this project does not compute"
            for mark, kind in MARKS.items()
            if any(name.endswith(mark) for name in contents.names)
        ),
        "",
    )


FORMAT = Format(rank=1, kind=name_kind)  # before the formats whose tensors these files have too
