"""The collective backend hccl, over gloo, and the environment it sets up at import."""

from __future__ import annotations

import inspect
import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ... import _simulated
from ..._release import table

_REFUSED = "Unsupported ReduceOp for HCCL process group"
_OPERATIONS = (dist.ReduceOp.SUM, dist.ReduceOp.MIN, dist.ReduceOp.MAX, dist.ReduceOp.PRODUCT)
_OF_BOOL = {"SUM": dist.ReduceOp.MAX, "PRODUCT": dist.ReduceOp.MIN}
_NATIVE = (torch.float32, torch.bfloat16)


def _setup_environment_from_mpi():
    """Take over what mpirun says."""
    for name, of_mpi in (("WORLD_SIZE", "SIZE"), ("RANK", "RANK"), ("LOCAL_RANK", "LOCAL_RANK")):
        value = os.environ.get(f"OMPI_COMM_WORLD_{of_mpi}")
        if value is not None:
            os.environ[name] = value
    os.environ.setdefault("MASTER_ADDR", "localhost")
    os.environ.setdefault("MASTER_PORT", "12345")


def _read_values_from_env():
    return tuple(int(os.environ.get(name, default)) for name, default in _DEFAULTS.items())


_DEFAULTS = {"WORLD_SIZE": "1", "RANK": "-1", "LOCAL_RANK": "-1"}


def _setup_module_id(local_rank=-1, world_size=1):
    if world_size == 1 or local_rank == -1 or os.environ.get("HLS_MODULE_ID"):
        return
    visible = os.environ.get("HABANA_VISIBLE_MODULES")
    os.environ["HLS_MODULE_ID"] = visible.split(",")[local_rank] if visible else str(local_rank)


def initialize_distributed_hpu(world_size=None, rank=None, local_rank=None):
    """(world_size, rank, local_rank) from the arguments, torchrun or mpirun."""
    for name, value in zip(_DEFAULTS, (world_size, rank, local_rank), strict=True):
        if value is not None:
            os.environ[name] = str(value)
    if any(name not in os.environ for name in _DEFAULTS):
        _setup_environment_from_mpi()
    world_size, rank, local_rank = _read_values_from_env()
    _setup_module_id(local_rank, world_size)
    os.environ["ID"] = str(rank)
    return world_size, rank, local_rank


def _alias(tensor):
    """The same memory as a CPU tensor."""
    if tensor.device.type != "hpu":
        raise RuntimeError("Tensors must be on hpu for the HCCL process group")
    if not tensor.is_contiguous():
        raise RuntimeError("Tensors must be contiguous for the HCCL process group")
    if tensor.dtype.is_complex:
        raise RuntimeError("Input tensor data type is not supported for HCCL process group")
    return _simulated.device.as_cpu(tensor.detach())


class ProcessGroupHCCL(dist.ProcessGroup):
    """Collectives on the memory of device tensors; each of them first cuts the lazy graph."""

    def __init__(self, store, rank, size, group_name):
        super().__init__(rank, size)
        self._name = group_name
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timedelta(minutes=5))

    def getBackendName(self):
        """Name of the backend."""
        return "hccl"

    @property
    def group_name(self):
        """Name of the group."""
        return self._name

    def _reduce(self, tensors, op, collective):
        """Run a reduction in fp32 unless the card can do it in the tensor's own type."""
        kind = next((known for known in _OPERATIONS if op == known), None)
        if kind is None:
            raise RuntimeError(_REFUSED)
        _simulated.cut("collective")
        memory = [_alias(tensor) for tensor in tensors]
        if memory[0].dtype == torch.bool:
            name = str(kind).rpartition(".")[2]
            kind = _OF_BOOL.get(name, kind)
        values = [m if m.dtype in _NATIVE else m.float() for m in memory]
        work = collective(values, kind)
        if any(a is not b for a, b in zip(values, memory, strict=True)):
            work.wait()
            for target, reduced in zip(memory, values, strict=True):
                target.copy_(reduced)
        return work

    def allreduce(self, tensors, opts=None):
        """Sum, least, largest or product over all processes, in place."""
        opts = opts or dist.AllreduceOptions()

        def reduce(memory, kind):
            options = dist.AllreduceOptions()
            options.reduceOp = kind
            return self._gloo.allreduce(memory, options)

        return self._reduce(tensors, opts.reduceOp, reduce)

    def allreduce_coalesced(self, tensors, opts=None):
        """One reduction after the other."""
        works = [self.allreduce([tensor], opts) for tensor in tensors]
        return works[-1]

    def reduce(self, tensors, opts):
        """The same for one receiver."""

        def reduce(memory, kind):
            opts.reduceOp = kind
            return self._gloo.reduce(memory, opts)

        return self._reduce(tensors, opts.reduceOp, reduce)

    def broadcast(self, tensors, opts=None):
        """Copy from one process to all."""
        _simulated.cut("collective")
        return self._gloo.broadcast([_alias(t) for t in tensors], opts or dist.BroadcastOptions())

    def allgather(self, output_lists, inputs, opts=None):
        """Every process's tensor, in a list."""
        _simulated.cut("collective")
        outputs = [[_alias(t) for t in tensors] for tensors in output_lists]
        return self._gloo.allgather(outputs, [_alias(t) for t in inputs])

    def _allgather_base(self, output, input, opts=None):
        """Every process's tensor, along the first dimension."""
        return self.allgather([list(output.flatten().chunk(self.size()))], [input.flatten()])

    all_gather_single = _allgather_base  # newer torch asks by this name

    def _reduce_scatter_base(self, output, input, opts=None):
        """A reduction of which each process keeps one part."""
        total = input.clone()
        work = self.allreduce([total], opts)
        work.wait()
        output.copy_(total.flatten().chunk(self.size())[self.rank()].reshape(output.shape))
        return work

    reduce_scatter_single = _reduce_scatter_base

    def barrier(self, opts=None):
        """Wait for the hosts; cuts nothing."""
        return self._gloo.barrier(opts or dist.BarrierOptions())


def _create_process_group_hccl(backend_opts, pg_opts):
    return ProcessGroupHCCL(
        backend_opts.store, backend_opts.group_rank, backend_opts.group_size, backend_opts.group_id
    )


def _restrict_torch():
    """Give torch's functions the arguments that the bridge of this release leaves them; 1.19 knows
    no device_id."""

    def check_arguments(function, more):
        unknown = more.keys() - set(table[f"more_of_{function}"])
        if unknown:
            raise TypeError(f"{function}() got an unexpected keyword argument '{min(unknown)}'")

    start, create = dist.init_process_group, dist.new_group

    def init_process_group(  # noqa: PLR0917 - the bridge's signature
        backend,
        init_method=None,
        timeout=timedelta(minutes=30),
        world_size=-1,
        rank=-1,
        store=None,
        group_name="",
        pg_options=None,
        **more,
    ):
        check_arguments("init_process_group", more)
        start(backend, init_method, timeout, world_size, rank, store, group_name, pg_options)

    def new_group(ranks=None, timeout=timedelta(minutes=30), backend=None, pg_options=None, **more):
        check_arguments("new_group", more)
        return create(ranks, timeout, backend, pg_options)

    choose = distributed_c10d._get_object_coll_device

    def choose_for_objects(group=None):  # a group written in Python cannot tell its device itself
        found = group or distributed_c10d._get_default_group()
        return "hpu" if isinstance(found, ProcessGroupHCCL) else choose(group)

    distributed_c10d._get_object_coll_device = choose_for_objects
    dist.init_process_group = distributed_c10d.init_process_group = init_process_group
    dist.new_group = distributed_c10d.new_group = new_group


def _hide_from_compiler():
    """The bridge's process group is no Python, and so torch.compile does not look into it."""
    for name, value in list(vars(ProcessGroupHCCL).items()):
        if inspect.isfunction(value) and name != "__init__":
            setattr(ProcessGroupHCCL, name, torch.compiler.disable(value))


if not hasattr(dist.Backend, "HCCL"):
    _hide_from_compiler()
    dist.Backend.register_backend(
        "hccl", _create_process_group_hccl, extended_api=True, devices=["hpu"]
    )
    _restrict_torch()
initialize_distributed_hpu()
