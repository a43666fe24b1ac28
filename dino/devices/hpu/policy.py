"""Check by probing which op lists the bridge follows.

The bridge may refuse the files, and older software does so silently.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dino.errors import DeviceError

# The vendor's own lists (autocast_helpers.h), the same from 1.19 to the 1.24 line.
VENDOR_BF16 = frozenset(
    """addmm addbmm batch_norm baddbmm bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d dot dropout feature_dropout group_norm instance_norm layer_norm leaky_relu
    linear matmul mean mm mul mv softmax log_softmax scaled_dot_product_attention""".split()
)
VENDOR_FP32 = frozenset(
    """acos addcdiv asin atan2 bilinear binary_cross_entropy binary_cross_entropy_with_logits cdist
    cosh cosine_embedding_loss cosine_similarity cross_entropy_loss dist div divide embedding
    embedding_bag erfinv exp expm1 hinge_embedding_loss huber_loss kl_div l1_loss log log10 log1p
    log2 logsumexp margin_ranking_loss mse_loss multi_margin_loss multilabel_margin_loss nll_loss
    pdist poisson_nll_loss pow reciprocal renorm rsqrt sinh smooth_l1_loss soft_margin_loss softplus
    tan topk triplet_margin_loss truediv true_divide""".split()
)

# One call of an op on x (4, 4); the result has the number format that the op ran in.
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "conv2d": lambda x: F.conv2d(x[None, None], x[None, None]),
    "rsub": lambda x: torch.rsub(x, x),
    "softmax": lambda x: x.softmax(dim=0),
    "log_softmax": lambda x: x.log_softmax(dim=0),
    "mm": lambda x: torch.mm(x, x),
    "matmul": lambda x: torch.matmul(x, x),
    "linear": lambda x: F.linear(x, x),
    "mul": lambda x: torch.mul(x, x),
    "mean": lambda x: x.mean(dim=0),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "add": lambda x: torch.add(x, x),
    "sub": lambda x: torch.sub(x, x),
    "div": lambda x: torch.div(x, x),
    "exp": torch.exp,
    "log": torch.log,
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "softplus": F.softplus,
    "leaky_relu": F.leaky_relu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sqrt": torch.sqrt,
    "sum": torch.sum,
}


class Probe(NamedTuple):
    """An op whose result distinguishes two policies.

    Attributes:
        name: Name of the op.
        given: Number format of its input.
        wanted: Number format of its result if the lists are followed.
    """

    name: str
    given: torch.dtype
    wanted: torch.dtype


def plan_probes(bf16: Collection[str], fp32: Collection[str]) -> Iterator[Probe]:
    """Yield up to two probes per list: an op that only it has, one that only the vendor's has."""
    fp32 = [name for name in fp32 if name not in bf16]  # the first list wins
    for ours, vendors, given, cast in (
        (bf16, VENDOR_BF16, torch.float32, torch.bfloat16),
        (fp32, VENDOR_FP32, torch.bfloat16, torch.float32),
    ):
        only_ours = [name for name in CALLS if name in ours and name not in vendors]
        only_vendors = [name for name in CALLS if name in vendors and name not in ours]
        yield from (Probe(name, given, cast) for name in only_ours[:1])
        yield from (Probe(name, given, given) for name in only_vendors[:1])


def check_policy(
    device: torch.device,
    autocast: Callable[[], AbstractContextManager[object]],
    bf16: Collection[str],
    fp32: Collection[str],
) -> int:
    """Run the probes on the card.

    Returns:
        Number of probes; 0 if no probe distinguishes the lists from the vendor's.

    Raises:
        DeviceError: The bridge follows other lists.
    """
    probes = list(plan_probes(bf16, fp32))
    for name, given, wanted in probes:
        with torch.no_grad(), autocast():
            actual = CALLS[name](torch.ones(4, 4, dtype=given, device=device)).dtype
        if actual != wanted:
            raise DeviceError(
                f"the bridge does not follow the op lists: {name} ran in {_plain(actual)} "
                f"instead of {_plain(wanted)}; its lines on stderr may show why",
                remedy="`precision` bf16 trains with the vendor's own lists",
            )
    return len(probes)


def _plain(number_format: torch.dtype) -> str:
    return str(number_format).removeprefix("torch.")
