"""Vision transformer with a CLS token and the parameter names of the original.

See the original's vision_transformer.py. Shapes: B images, C channels, H W pixels, N tokens (CLS
first, then the patches row by row), D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.models.depth import DropPath, scale_branch
from dino.models.packing import Groups, pack, spread, take_first, unpack
from dino.models.patch_embed import ConvStem, PatchEmbed
from dino.models.position import compute_weights, scale_position
from dino.models.recompute import run_again, run_linear

LAYER_NORM_EPS = 1e-6  # as the original; smaller than torch's default


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, dim: int, heads: int) -> None:
        """Create the query, key, value and output projections for D = `dim`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, groups: Groups = (), *, only_cls: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D), without storing the N x N weights; see `mix`."""
        return self.mix(self.qkv(tokens), groups, only_cls=only_cls)

    def mix(self, qkv: Tensor, groups: Groups = (), *, only_cls: bool = False) -> Tensor:
        """Attend with projected tokens.

        Args:
            qkv: (B, N, 3 D), or (T, 3 D) with `groups`.
            groups: Which tokens of a packed sequence belong together.
            only_cls: Compute only the CLS tokens' result, (sum of B, D); needs `groups`.

        Returns:
            (B, N, D), or (T, D) with `groups`.
        """
        parts = self.attend(qkv, groups, only_cls=only_cls)
        tokens: Tensor = self.proj(pack(parts) if groups else parts[0])
        return tokens

    def attend(self, qkv: Tensor, groups: Groups = (), *, only_cls: bool = False) -> list[Tensor]:
        """`mix` before the output projection: one (B, N, D) per resolution."""
        queries = slice(1) if only_cls else slice(None)
        return [self._attend(part, queries) for part in (unpack(qkv, groups) if groups else [qkv])]

    def _attend(self, qkv: Tensor, queries: slice) -> Tensor:
        query, key, value = self._split(qkv)
        mixed = F.scaled_dot_product_attention(query[:, :, queries], key, value)
        return mixed.transpose(1, 2).flatten(2)

    def compute_weights(self, tokens: Tensor, queries: slice) -> Tensor:
        """Attention of the selected queries: (B, N, D) -> (B, heads, len(queries), N)."""
        query, key, _ = self._split(self.qkv(tokens))
        scores: Tensor = query[:, :, queries] @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
        return scores.softmax(dim=-1)

    def _split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        parts = torch.unflatten(qkv, -1, (3, self.heads, -1))
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        return query, key, value


class Mlp(nn.Module):
    """The two-layer perceptron of a block."""

    def __init__(self, dim: int, hidden: int) -> None:
        """Create the two layers for D = `dim`."""
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.project(self.fc1(tokens))

    def project(self, hidden: Tensor) -> Tensor:
        """Apply GELU and the second layer: (B, N, hidden) -> (B, N, D)."""
        tokens: Tensor = self.fc2(self.act(hidden))
        return tokens


class Block(nn.Module):
    """One transformer block, normalized before each branch."""

    def __init__(self, *, dim: int, heads: int, mlp_ratio: float, drop_path: float) -> None:
        """Create the block for D = `dim`."""
        super().__init__()
        self.recompute = "nothing"  # or activations, mlp, blocks; see `set_recompute`
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, heads)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(
        self,
        tokens: Tensor,
        depth: tuple[Tensor | None, Tensor | None] = (None, None),
        groups: Groups = (),
        *,
        only_cls: bool = False,
    ) -> Tensor:
        """Run the block.

        Args:
            tokens: (B, N, D), or (T, D) with `groups`.
            depth: Factors of both branches, float32, one per row of `tokens` (with `only_cls`, one
                per image).
            groups: Which tokens of a packed sequence belong together.
            only_cls: Return only the CLS tokens, (sum of B, D), for a last block; needs `groups`.
        """
        # Missing factors are drawn here, outside of what is recomputed.
        factors = self.drop_path(tokens, depth[0]), self.drop_path(tokens, depth[1])
        if self.recompute == "nothing" or not torch.is_grad_enabled():
            return self._run(tokens, *factors, groups, only_cls)
        if self.recompute == "blocks":
            return run_again(self._run, tokens, *factors, groups, only_cls)
        return self._run_lean(tokens, *factors, groups, only_cls)

    def _run(
        self,
        tokens: Tensor,
        attended: Tensor | None,
        fed: Tensor | None,
        groups: Groups,
        only_cls: bool,
    ) -> Tensor:
        branch = self.attn(self.norm1(tokens), groups, only_cls=only_cls)
        tokens = take_first(tokens, groups) if only_cls else tokens
        tokens = tokens + scale_branch(branch, attended)
        return tokens + scale_branch(self.mlp(self.norm2(tokens)), fed)

    def _run_lean(
        self,
        tokens: Tensor,
        attended: Tensor | None,
        fed: Tensor | None,
        groups: Groups,
        only_cls: bool,
    ) -> Tensor:
        """As `_run`, but recompute cheap results: normalized tokens and GELU outputs.

        `mlp` also recomputes the GELU's input, at the cost of running the first layer again.
        """
        qkv = run_linear(self.norm1, self.attn.qkv, tokens)
        parts = self.attn.attend(qkv, groups, only_cls=only_cls)
        join = (lambda *parts: pack(parts)) if groups else (lambda part: part)
        branch = run_linear(join, self.attn.proj, *parts)
        tokens = take_first(tokens, groups) if only_cls else tokens
        tokens = tokens + scale_branch(branch, attended)
        if self.recompute == "mlp":
            branch = run_again(lambda inputs: self.mlp(self.norm2(inputs)), tokens)
        else:
            hidden = run_linear(self.norm2, self.mlp.fc1, tokens)
            branch = run_linear(self.mlp.act, self.mlp.fc2, hidden)
        return tokens + scale_branch(branch, fed)


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
        rates = torch.linspace(0, drop_path_rate, depth).tolist()
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
        groups = tuple((len(tokens), tokens.shape[1]) for tokens in embedded)
        tokens, (*blocks, last) = pack(embedded), self._list_blocks()
        *factors, last_factors = self._list_factors(depth, groups, tokens.device)
        for block, pair in zip(blocks, factors, strict=True):
            tokens = block(tokens, pair, groups)
        features: Tensor = self.norm(last(tokens, last_factors, groups, only_cls=True))
        return features

    def _list_factors(
        self, depth: Tensor | None, groups: Groups, device: torch.device
    ) -> list[tuple[Tensor | None, Tensor | None]]:
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
