"""The 1.24 line as it comes, and so in eager mode: what differs there; a failed check ends it with
an error."""

import contextlib
import io
import os
import tempfile

import pytest
import torch
import torch.nn.functional as F

from tests.hpu_simulator import leave, load, watch

load()

from habana_frameworks.torch import _op_lists, _release  # noqa: E402
from habana_frameworks.torch.core import mark_step  # noqa: E402
from habana_frameworks.torch.hpu.metrics import metric_global, metric_localcontext, metrics  # noqa: E402
from habana_frameworks.torch.utils.internal import is_lazy  # noqa: E402

assert not is_lazy()
assert torch.tensor([2**40], device="hpu").item() == 2**40, "64-bit integers exist in eager mode"
x = torch.ones(4, 4, device="hpu")
torch.testing.assert_close(F.gelu(x).cpu(), F.gelu(torch.ones(4, 4)), rtol=0, atol=0)
x.lerp_(x, 0.25)
with watch() as seen:
    x.lerp_(x, 0.25)
    x.mul_(0.3)
    mark_step()
assert seen.graphs == []
assert [line.partition("(")[0] for line in seen.new_ops] == ["aten::mul_.Tensor"]
with watch() as seen:
    x.lerp_(x, 0.5)
    x.mul_(0.4)
assert len(seen.new_ops) == 1 and "weight=0.5" in seen.new_ops[0]

linear = torch.nn.Linear(4, 4).to("hpu")
compiled = torch.compile(
    lambda t: F.softmax(linear(t), -1).sum(), backend="hpu_backend", dynamic=False
)
with watch() as seen:
    compiled(x).backward()
assert [graph.closed_by for graph in seen.new_graphs] == ["torch.compile"] * 2
with watch() as seen:
    compiled(x).backward()
assert seen.new_graphs == []
with watch() as seen:
    compiled(torch.ones(8, 4, device="hpu")).backward()
assert len(seen.new_graphs) == 2
assert dict(metric_global("graph_compilation").stats())["TotalNumber"] == 0
with watch() as seen:
    compiled(torch.ones(8, 4, device="hpu")).item()
assert [read.kind for read in seen.host_reads] == ["item"]

host = torch.ones(4, 4).pin_memory()
with watch() as seen:
    x.mul(2)
    torch.manual_seed(0)
    torch.manual_seed(0)
    x.copy_(torch.ones(4, 4), non_blocking=True)
    x.copy_(host, non_blocking=True)
    x.copy_(host, non_blocking=True)
assert [join.kind for join in seen.joins] == ["manual_seed", "copy from pinned memory"]
with watch() as seen:
    compiled(x).backward()
assert [launch.operator for launch in seen.launches].count("graph") == 2, (
    "a compiled graph is one launch"
)
assert "aten::addmm" not in seen.launches.within("")

assert _release.name == "1.24" and _release.read_variable("PT_HPU_LAZY_MODE") == "0"
with pytest.raises(ValueError, match=r"expected one of 1\.19, 1\.24, got '1\.2'"):
    _release.read_table("1.2")
with watch() as seen:
    F.scaled_dot_product_attention(x, x, x)
    x.repeat(1, 7).sort(stable=False)
    torch.histc(x, 3)
    F.interpolate(x.view(1, 1, 4, 4), size=2, mode="bicubic", antialias=True)
assert not seen.fallbacks and len(seen.calls("_safe_softmax")) == 1
with watch() as seen:
    parameters = [[torch.ones(2, device="hpu")] for _ in range(4)]
    decay = {
        "beta1": 0.9,
        "beta2": 0.9,
        "weight_decay": 0.0,
        "eps": 1e-8,
        "amsgrad": False,
        "maximize": False,
    }
    torch._fused_adamw_(*parameters, [], [torch.ones((), device="hpu")], lr=0.1, **decay)
    torch._fused_adamw_(
        *parameters, [], [torch.ones((), device="hpu")], lr=torch.ones((), device="hpu"), **decay
    )
assert list(seen.fallbacks) == ["aten::_fused_adamw_.tensor_lr"]

with pytest.raises(metrics.MetricNotFoundError), metric_localcontext("no such metric"):
    pass
assert isinstance(metric_global("device_memory").stats(), dict)

with tempfile.TemporaryDirectory(dir=os.path.realpath("/tmp")) as folder:
    accepted = os.path.join(folder, "ops")
    with open(accepted, "w", encoding="utf-8") as file:
        file.write("mm\niadd\n")
    link = os.path.join(folder, "link")
    os.symlink("/etc/passwd", link)
    for path, names, said in (
        (accepted, ["mm"], "line 2: unknown 'iadd'"),
        (
            "/etc/passwd",
            ["bmm"],
            "/etc/passwd is in a folder that is not allowed; the default list holds",
        ),
        (link, ["bmm"], f"{link} is in a folder that is not allowed; the default list holds"),
        (folder, ["bmm"], f"{folder} cannot be read; the default list holds"),
        ("", ["bmm"], ""),
    ):
        os.environ["PT_HPU_AUTOCAST_FP32_OPS_LIST"] = path
        with contextlib.redirect_stderr(io.StringIO()) as text:
            assert _op_lists.read_list("PT_HPU_AUTOCAST_FP32_OPS_LIST", ["bmm"]) == names
        assert said in text.getvalue()
leave()
