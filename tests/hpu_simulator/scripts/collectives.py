"""One of two processes that use every collective of hccl; a failed check ends it with an error."""

import os

import pytest
import torch
import torch.distributed as dist

from tests.hpu_simulator import leave, load, watch

load()

from habana_frameworks.torch.core import mark_step  # noqa: E402
from habana_frameworks.torch.distributed.hccl import initialize_distributed_hpu  # noqa: E402

rank = int(os.environ["RANK"])
assert initialize_distributed_hpu() == (2, rank, rank)
assert os.environ["HLS_MODULE_ID"] == str(rank)
with pytest.raises(TypeError, match="device_id"):
    dist.init_process_group("hccl", device_id=torch.device("hpu"))
dist.init_process_group("hccl")

value = torch.full((4,), rank + 1.0, device="hpu")
with watch() as seen:
    dist.all_reduce(value)
assert seen.collectives == 1
assert [graph.closed_by for graph in seen.graphs] == ["collective"]
assert [join.kind for join in seen.joins] == ["collective"]
assert value.tolist() == [3.0] * 4
dist.all_reduce(value, op=dist.ReduceOp.MAX)
with pytest.raises(RuntimeError, match="Unsupported ReduceOp for HCCL process group"):
    dist.all_reduce(value, op=dist.ReduceOp.AVG)
with pytest.raises(RuntimeError, match="must be on hpu"):
    dist.all_reduce(torch.ones(2))
count = torch.tensor(2**24 + 1 + rank, device="hpu")
dist.all_reduce(count)
assert count.item() != 2**25 + 3, "integers are added as float32"

parts = [torch.empty(4, device="hpu") for _ in range(2)]
dist.all_gather(parts, value + rank)
assert [part[0].item() for part in parts] == [3.0, 4.0]
whole = torch.empty(8, device="hpu")
dist.all_gather_into_tensor(whole, value + rank)
assert whole.tolist() == [3.0] * 4 + [4.0] * 4
names = [None, None]
dist.all_gather_object(names, f"rank {rank}")
assert names == ["rank 0", "rank 1"]

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.GELU(), torch.nn.Linear(4, 2)).to("hpu")
parallel = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
data = torch.randn(2, 5, 3).to("hpu")
for _ in range(4):
    with watch() as seen:
        parallel.zero_grad()
        parallel(data[rank]).sum().backward()
        mark_step()
assert not seen.new_graphs
assert seen.collectives == 1
gradient = model[0].weight.grad.cpu()
model.zero_grad()
(model(data[0]).sum() / 2 + model(data[1]).sum() / 2).backward()
torch.testing.assert_close(gradient, model[0].weight.grad.cpu())
dist.barrier()
dist.destroy_process_group()
leave()
