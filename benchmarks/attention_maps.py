"""Attention maps of one image: the CLS row alone beside the textbook way, which fills N x N matrices.

    python benchmarks/attention_maps.py [--image_size 480] [--arch vit_small] [--patch_size 8] [--repeat 3]

The textbook way is the network as the paper's code writes it down: softmax(q k^T) v with the matrix
in memory in every block, and the whole matrix of the last block, of which the maps are one row.
Both ways run on the CPU with one thread, with the same random weights, each in a process of its
own. Prints one JSON line: tokens N; the largest tensor, the tensors of N x N numbers or more, the
growth of the process's peak memory and the median seconds of each way; and the largest difference
between their maps. The first two are counted from every tensor that an operator gives.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from dino.models.block import Attention  # noqa: E402
from dino.models.registry import build_backbone  # noqa: E402
from dino.visualization.attention_maps import ClsAttention  # noqa: E402

MIB = 2**20


def main() -> None:
    """Measure both ways, or, in a process of its own, one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--image_size", type=int, default=480)
    parser.add_argument("--arch", default="vit_small")
    parser.add_argument("--patch_size", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--way", choices=list(WAYS))
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
        return
    found = {way: run_alone(way) for way in WAYS}
    maps = [torch.tensor(figures.pop("maps")) for figures in found.values()]
    tokens = (options.image_size // options.patch_size) ** 2 + 1
    difference = float((maps[0] - maps[1]).abs().max())
    shape = {
        "arch": options.arch,
        "patch size": options.patch_size,
        "image size": options.image_size,
    }
    print(json.dumps({**shape, "tokens": tokens, **found, "largest difference": difference}))


def run_alone(way: str) -> dict[str, Any]:
    """One way in a process of its own, so that its peak memory is its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one way."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    backbone = build_backbone(options.arch, patch_size=options.patch_size).eval()
    images = torch.randn(1, 3, options.image_size, options.image_size)
    tokens = (options.image_size // options.patch_size) ** 2 + 1
    compute = WAYS[options.way](backbone)
    before, seconds = peak_memory(), []
    with torch.inference_mode():
        for _ in range(options.repeat):
            began = time.perf_counter()
            maps = compute(images)
            seconds.append(time.perf_counter() - began)
        grown = peak_memory() - before
        with TensorSizes(tokens * tokens) as sizes:
            compute(images)
    return {
        "N x N tensors": sizes.large,
        "largest tensor MiB": round(sizes.largest / MIB, 1),
        "peak memory growth MiB": round(grown / MIB),
        "seconds": round(statistics.median(seconds), 2),
        "maps": maps.flatten().tolist(),
    }


def peak_memory() -> int:
    """Bytes of this process's memory at its largest so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class TextbookAttention(nn.Module):
    """The block's attention as the paper's code computes it."""

    def __init__(self, attention: Attention) -> None:
        """Use the weights of our own."""
        super().__init__()
        self.inner = attention

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D) through weights of (B, heads, N, N)."""
        value = self.inner._split(self.inner.qkv(tokens))[2]
        weights = self.inner.compute_weights(tokens, slice(None))
        return self.inner.proj((weights @ value).transpose(1, 2).flatten(2))

    def compute_weights(self, tokens: Tensor, queries: slice) -> Tensor:
        """Of the last block."""
        return self.inner.compute_weights(tokens, queries)


class Textbook(nn.Module):
    """Maps from the last block's whole matrix."""

    def __init__(self, backbone: Any) -> None:
        """Replace the attention of every block."""
        super().__init__()
        self.backbone = backbone
        for block in backbone.blocks:
            block.attn = TextbookAttention(block.attn)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, heads, h, w)."""
        row = self.backbone.get_last_selfattention(images)[:, :, 0, 1:]
        return row.unflatten(
            -1, tuple(side // self.backbone.patch_size for side in images.shape[-2:])
        )


WAYS: dict[str, Any] = {"CLS row": ClsAttention, "textbook": Textbook}


class TensorSizes(TorchDispatchMode):
    """Counts the tensors that operators give with `limit` numbers or more, and keeps the largest, in bytes."""

    def __init__(self, limit: int) -> None:
        """Nothing seen yet."""
        super().__init__()
        self.limit, self.large, self.largest = limit, 0, 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = op(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and not tensor._is_view():
                self.large += tensor.numel() >= self.limit
                self.largest = max(self.largest, tensor.numel() * tensor.element_size())
        return result


if __name__ == "__main__":
    main()
