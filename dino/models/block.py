"""Blocks of a vision transformer, with the parameter names of the original.

See the original's vision_transformer.py. Shapes: B images, N tokens, D width, h heads, d width of a
head, T tokens of all resolutions in a packed sequence (`dino/models/packing`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino.models.depth import DropPath, scale_branch
from dino.models.packing import Groups, pack, take_first, unpack
from dino.models.recompute import run_again, run_linear

LAYER_NORM_EPS = 1e-6  # as the original; smaller than torch's default

Factors = tuple[Tensor | None, Tensor | None]  # of the attention's branch and the perceptron's


class Attention(nn.Module):
    """Multi-head self-attention.

    Attributes:
        attend: Query, key and value (B, h, N, d) -> (B, h, N, d); `set_attention` replaces it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        """Create the query, key, value and output projections for D = `dim`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, dim * 3)
        self.proj = nn.Linear(dim, dim)
        self.attend: Callable[..., Tensor] = F.scaled_dot_product_attention

    def forward(self, tokens: Tensor, groups: Groups = (), *, only_cls: bool = False) -> Tensor:
        """(B, N, D) -> (B, N, D), or packed; see `mix`."""
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
        parts = self.mix_parts(qkv, groups, only_cls=only_cls)
        tokens: Tensor = self.proj(pack(parts) if groups else parts[0])
        return tokens

    def mix_parts(
        self, qkv: Tensor, groups: Groups = (), *, only_cls: bool = False
    ) -> list[Tensor]:
        """As `mix`, without the output projection: one (B, N, D) per resolution."""
        queries = slice(1) if only_cls else slice(None)
        return [self._attend(part, queries) for part in (unpack(qkv, groups) if groups else [qkv])]

    def _attend(self, qkv: Tensor, queries: slice) -> Tensor:
        query, key, value = self._split(qkv)
        mixed = self.attend(query[:, :, queries], key, value)
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
        depth: Factors = (None, None),
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
            return self._run(tokens, factors, groups, only_cls)
        if self.recompute == "blocks":
            return run_again(self._run, tokens, factors, groups, only_cls)
        return self._run_lean(tokens, factors, groups, only_cls)

    def _run(self, tokens: Tensor, factors: Factors, groups: Groups, only_cls: bool) -> Tensor:
        branch = self.attn(self.norm1(tokens), groups, only_cls=only_cls)
        tokens = take_first(tokens, groups) if only_cls else tokens
        tokens = tokens + scale_branch(branch, factors[0])
        return tokens + scale_branch(self.mlp(self.norm2(tokens)), factors[1])

    def _run_lean(self, tokens: Tensor, factors: Factors, groups: Groups, only_cls: bool) -> Tensor:
        """As `_run`, but recompute cheap results.

        These are normalized tokens, GELU outputs, and the attended tokens in one sequence. `mlp`
        also recomputes the GELU's input, at the cost of running the first layer again.
        """
        qkv = run_linear(self.norm1, self.attn.qkv, tokens)
        parts = self.attn.mix_parts(qkv, groups, only_cls=only_cls)
        join = (lambda *parts: pack(parts)) if groups else (lambda part: part)
        branch = run_linear(join, self.attn.proj, *parts)
        tokens = take_first(tokens, groups) if only_cls else tokens
        tokens = tokens + scale_branch(branch, factors[0])
        if self.recompute == "mlp":
            branch = run_again(lambda inputs: self.mlp(self.norm2(inputs)), tokens)
        else:
            hidden = run_linear(self.norm2, self.mlp.fc1, tokens)
            branch = run_linear(self.mlp.act, self.mlp.fc2, hidden)
        return tokens + scale_branch(branch, factors[1])
