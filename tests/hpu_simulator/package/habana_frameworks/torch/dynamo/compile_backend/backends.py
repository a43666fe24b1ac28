"""The backend of torch.compile."""

from __future__ import annotations

import torch
from torch._dynamo import register_backend
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch.utils._python_dispatch import _disable_current_modes

from ... import _simulated


class _Run(torch.fx.Interpreter):
    """Runs a graph operator by operator; results have the strides that the tracer promised to later
    operators."""

    def run(self, *args: object, **kwargs: object) -> object:
        """See the base class; all of it is one launch, and torch sees no operator of it."""
        _simulated.device.enter_graph()
        try:
            with _disable_current_modes():
                return super().run(*args, **kwargs)
        finally:
            # or it would hold the results, and autograd copies gradients that somebody holds
            self.env = {}
            _simulated.device.leave_graph()

    def run_node(self, n: torch.fx.Node) -> object:
        """See the base class."""
        result, promised = super().run_node(n), n.meta.get("val")
        if (
            not isinstance(promised, torch.Tensor)
            or n.op != "call_function"
            or result.stride() == promised.stride()
        ):
            return result
        return torch.empty_strided(
            promised.shape, promised.stride(), dtype=result.dtype, device="hpu"
        ).copy_(result)


def _compile(graph_module: torch.fx.GraphModule, example_inputs: list[object]) -> object:
    """Count a graph, then run it operator by operator."""
    inputs = [
        f"input {tuple(x.shape)} {x.dtype}" for x in example_inputs if isinstance(x, torch.Tensor)
    ]
    nodes = [node.format_node() or str(node) for node in graph_module.graph.nodes]
    _simulated.device.add_compiled(inputs + nodes)
    return make_boxed_func(_Run(graph_module).run)


@register_backend(name="hpu_backend")
def hpu_backend(graph_module, example_inputs, **kwargs):
    """Compile a graph; eager mode only."""
    if _simulated.mode:
        raise RuntimeError("hpu_backend needs PT_HPU_LAZY_MODE=0")
    # PT_HPU_KEEP_INPUT_MUTATIONS, 1 in every release: what a graph changes, it writes itself
    return aot_autograd(fw_compiler=_compile, keep_inference_input_mutations=True)(
        graph_module, example_inputs
    )
