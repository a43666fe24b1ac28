"""Vision transformer with a CLS token and the parameter names of the original.

See the original's vision_transformer.py. Shapes: B images, C channels, H W pixels, N tokens (CLS
first, then the patches row by row), D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from dino.models.block import LAYER_NORM_EPS, Block, Factors
from dino.models.packing import Groups, pack, spread
from dino.models.patch_embed import ConvStem, PatchEmbed
from dino.models.position import compute_weights, scale_position


class VisionTransformer(nn.Module):
    """Maps each image to one CLS feature.

    Args:
        img_size: Side in pixels of the square image that the position embedding is stored for.
        patch_size: Side of a patch in pixels.
        in_chans: Channels C.
        embed_dim: Width D, a multiple of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        mlp_ratio: Hidden width of each perceptron divided by D.
        drop_path_rate: Stochastic depth of the last block, 0 to 1; grows linearly from 0.
        conv_stem: Embed patches with `ConvStem` instead of the original's single projection.
    """

    def __init__(
        self,
        *,
        img_size: int = 224,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int,
        depth: int,
        heads: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        conv_stem: bool = False,
    ) -> None:
        """Create the network; weights truncated normal (0.02), biases zero, as the original."""
        super().__init__()
        self.embed_dim = embed_dim
        self.patch_size = patch_size
        grid = img_size // patch_size
        embed = ConvStem if conv_stem else PatchEmbed
        self.patch_embed = embed(patch_size=patch_size, in_chans=in_chans, embed_dim=embed_dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, embed_dim))
        self.fixed_size: tuple[int, int] | None = None
        rates = torch.linspace(0, drop_path_rate, depth, device="cpu").tolist()  # even on meta
        self.blocks = nn.ModuleList(
            Block(dim=embed_dim, heads=heads, mlp_ratio=mlp_ratio, drop_path=rate) for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(init_linear)

    @property
    def drop_rates(self) -> list[float]:
        """Drop probability of each block."""
        return [block.drop_path.rate for block in self._list_blocks()]

    def forward(self, images: Tensor | Sequence[Tensor], depth: Tensor | None = None) -> Tensor:
        """Images of any number of resolutions in one pass -> CLS features (sum of B, D).

        The last block computes only what its CLS tokens need; nothing else is read.

        Args:
            images: (B, C, H, W), or one such tensor per resolution; normalized. H and W may differ
                from `img_size`.
            depth: (2 L, sum of B) float32, each image's factors for both branches of the L blocks,
                in training only; None to draw them here.
        """
        embedded = [self._embed(v) for v in ((images,) if isinstance(images, Tensor) else images)]
        groups = tuple((tokens.shape[0], tokens.shape[1]) for tokens in embedded)
        tokens, (*blocks, last) = pack(embedded), self._list_blocks()
        *factors, last_factors = self._list_factors(depth, groups, tokens.device)
        for block, pair in zip(blocks, factors, strict=True):
            tokens = block(tokens, pair, groups)
        features: Tensor = self.norm(last(tokens, last_factors, groups, only_cls=True))
        return features

    def _list_factors(
        self, depth: Tensor | None, groups: Groups, device: torch.device
    ) -> list[Factors]:
        """Each block's factors: one per token, and in the last block one per image."""
        if not self.training or not any(self.drop_rates):
            return [(None, None)] * len(self.blocks)
        if depth is None:
            images = sum(count for count, _ in groups)
            parts = [block.drop_path for block in self._list_blocks() for _ in range(2)]
            depth = torch.stack([part.draw(images, device) for part in parts])
        *inner, attended, fed = (*spread(depth[:-2], groups).unbind(), *depth[-2:].unbind())
        return [*zip(inner[::2], inner[1::2], strict=True), (attended, fed)]

    def get_intermediate_layers(self, images: Tensor, n: int = 1) -> list[Tensor]:
        """Normalized tokens (B, N, D) of the last `n` blocks, the last block last."""
        tokens, kept = self._embed(images), []
        for index, block in enumerate(self.blocks):
            tokens = block(tokens)
            if index >= len(self.blocks) - n:
                kept.append(self.norm(tokens))
        return kept

    def get_last_selfattention(self, images: Tensor, queries: slice = slice(None)) -> Tensor:
        """Attention of the last block, (B, heads, len(queries), N).

        Args:
            images: (B, C, H, W).
            queries: Which tokens attend; `slice(0, 1)` is only CLS and avoids an N x N tensor.
        """
        tokens = self._embed(images)
        *others, last = self._list_blocks()
        for block in others:
            tokens = block(tokens)
        return last.attn.compute_weights(last.norm1(tokens), queries)

    def set_recompute(self, what: str) -> None:
        """Set what each block recomputes; see `dino.models.registry.set_recompute`."""
        for block in self._list_blocks():
            block.recompute = what

    def set_attention(self, attend: Callable[..., Tensor]) -> None:
        """Replace torch's attention in all blocks."""
        for block in self._list_blocks():
            block.attn.attend = attend

    def _list_blocks(self) -> list[Block]:
        return cast(list[Block], list(self.blocks))

    def fix_size(self, height: int, width: int) -> None:
        """Store the position embedding of `height` x `width` pixels, the only size from now on."""
        self.pos_embed = nn.Parameter(self._position(height, width).detach(), requires_grad=False)
        self.fixed_size = (height, width)

    def expect_sizes(self, sides: Iterable[int]) -> None:
        """Cache position weights for square images of these sides, outside of checkpoints."""
        grid = math.isqrt(self.pos_embed.shape[1] - 1)
        for count in {side // self.patch_size for side in sides} - {grid}:
            self.register_buffer(
                f"position_{count}", compute_weights(count, grid), persistent=False
            )

    def _embed(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)
        tokens = torch.cat([self.cls_token.expand(images.shape[0], -1, -1), patches], dim=1)
        height, width = map(int, images.shape[-2:])  # tensors under torch.jit tracing
        return tokens + self._position(height, width)

    def _position(self, height: int, width: int) -> Tensor:
        """Position embedding (1, N, D) for an image of `height` x `width` pixels."""
        if (height, width) == self.fixed_size:
            return self.pos_embed
        counts = {side // self.patch_size for side in (height, width)}
        kept = {
            count: getattr(self, f"position_{count}")
            for count in counts
            if hasattr(self, f"position_{count}")
        }
        return scale_position(self.pos_embed, height, width, self.patch_size, kept)


def init_linear(module: nn.Module) -> None:
    """Initialize a linear layer as the original does; leave other modules unchanged."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
