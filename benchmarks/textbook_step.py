"""The training step written plainly, as the paper and the original describe it: eager, loops, attention materialised.

For comparison only. Names of parameters are the original's, so that both ways can start from the
same weights.
Shapes: B images, V views, N tokens, D width, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head self-attention with its N x N weights."""

    def __init__(self, dim: int, heads: int) -> None:
        """Make the projections."""
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> the same."""
        batch, tokens, dim = x.shape
        q, k, v = (
            self.qkv(x)
            .reshape(batch, tokens, 3, self.heads, dim // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class Mlp(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, dim: int) -> None:
        """Make them, four times as wide inside."""
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> the same."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, heads: int) -> None:
        """Make it."""
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim, eps=1e-6), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=1e-6), Mlp(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> the same."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    """A convolution whose stride is its size."""

    def __init__(self, patch: int, dim: int) -> None:
        """Make it."""
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, N - 1, D)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    """The backbone."""

    def __init__(self, *, patch: int, dim: int, depth: int, heads: int, size: int) -> None:
        """Make it for images of `size` pixels."""
        super().__init__()
        self.patch = patch
        self.patch_embed = PatchEmbed(patch, dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, (size // patch) ** 2 + 1, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, D)."""
        position = self.resize_positions(x.shape[-1] // self.patch)
        x = (
            torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1)
            + position
        )
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def resize_positions(self, side: int) -> Tensor:
        """Bicubic, with the original's 0.1 in the scale factor."""
        old = math.isqrt(self.pos_embed.shape[1] - 1)
        if side == old:
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, scale_factor=(side + 0.1) / old, mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


class Prototypes(nn.Module):
    """Weight-normalized last layer."""

    def __init__(self, count: int) -> None:
        """Make `count` rows."""
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=False)
        self.weight_v = nn.Parameter(torch.randn(count, 256))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 256) -> (B, K)."""
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class Head(nn.Module):
    """The projection head."""

    def __init__(self, dim: int, prototypes: int) -> None:
        """Make it."""
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(dim, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        )
        self.last_layer = Prototypes(prototypes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, K)."""
        return self.last_layer(F.normalize(self.mlp(x), dim=-1))


class Network(nn.Module):
    """Backbone and head; one pass of the backbone for each size of crop."""

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        """Join them."""
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, crops: list[Tensor]) -> Tensor:
        """Crops of both sizes -> (V B, K)."""
        return self.head(torch.cat([self.backbone(group) for group in crops]))


class Textbook:
    """One step after another, with everything the original's loop does to a batch."""

    def __init__(
        self,
        build: Callable[[], Network],
        *,
        prototypes: int,
        clip: float,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager],
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        """Build student and teacher."""
        self.student, self.teacher = build().to(device), build().to(device)
        self.teacher.load_state_dict(self.student.state_dict())
        self.center, self.clip = torch.zeros(1, prototypes, device=device), clip
        self.autocast, self.scaler = autocast, scaler
        decayed = [p for p in self.student.parameters() if p.requires_grad and p.ndim > 1]
        plain = [p for p in self.student.parameters() if p.requires_grad and p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed}, {"params": plain, "weight_decay": 0.0}], foreach=False
        )

    def compute_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Loop over the pairs of views."""
        images = len(teacher) // 2
        guesses = (student / 0.1).split(images)
        targets = F.softmax((teacher - self.center) / temperature, dim=-1).detach().chunk(2)
        total, pairs = torch.zeros((), device=student.device), 0
        for target_view, target in enumerate(targets):
            for view, guess in enumerate(guesses):
                if view != target_view:
                    total = total + torch.sum(-target * F.log_softmax(guess, dim=-1), dim=-1).mean()
                    pairs += 1
        with torch.no_grad():
            self.center = self.center * 0.9 + teacher.sum(dim=0, keepdim=True) / len(teacher) * 0.1
        return total / pairs

    def step(
        self,
        views: list[Tensor],
        *,
        rate: float,
        decay: float,
        momentum: float,
        temperature: float,
        enter: Callable,
    ) -> float:
        """Train on one batch; `enter` is told which phase begins."""
        self.optimizer.param_groups[0]["weight_decay"] = decay
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.autocast():
            enter("teacher")
            with torch.no_grad():
                teacher = self.teacher(views[:1])
            enter("student")
            student = self.student(views)
            enter("loss")
            loss = self.compute_loss(student, teacher, temperature)
        if not math.isfinite(loss.item()):
            raise RuntimeError("the loss is not finite")
        self.optimizer.zero_grad()
        enter("backward")
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        enter("update")
        if self.scaler is not None:
            self.scaler.unscale_(self.optimizer)
        for parameter in self.student.parameters():
            if parameter.grad is not None and self.clip:
                norm = parameter.grad.data.norm(2)
                if self.clip / (norm + 1e-6) < 1:  # reads the norm back, as the original does
                    parameter.grad.data.mul_(self.clip / (norm + 1e-6))
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        with torch.no_grad():
            for ours, theirs in zip(
                self.student.parameters(), self.teacher.parameters(), strict=True
            ):
                theirs.data.mul_(momentum).add_((1 - momentum) * ours.detach().data)
        return loss.item()
