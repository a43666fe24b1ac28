"""What differs in eager mode; a failed check ends it with an error."""

import torch
import torch.nn.functional as F

from tests.hpu_simulator import leave, load, watch

load()

from habana_frameworks.torch.core import mark_step  # noqa: E402
from habana_frameworks.torch.hpu.metrics import metric_global  # noqa: E402
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
compiled = torch.compile(lambda t: F.softmax(linear(t), -1).sum(), backend="hpu_backend", dynamic=False)
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
leave()
