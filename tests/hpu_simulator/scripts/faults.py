"""Every fault that can be put into the card, in one process; a failed check ends it with an
error."""

import os
import signal

import pytest
import torch

from tests.hpu_simulator import leave, load, watch

FAULTS = (
    "refuse:aten::sin",
    "wrong:aten::cos",
    "wrong:aten::_foreach_mul",
    "wrong:aten::gt",
    "oom:aten::tan",
)
MORE = ("kill:aten::exp", "hang:aten::log", "fallback:aten::sqrt")
os.environ["HPU_SIMULATOR_FAULT"] = ",".join((*FAULTS, *MORE))
load()

from habana_frameworks.torch import _simulated  # noqa: E402


def end_of(name: str) -> int:
    """The signal that ends a process in which the operator is called; an alarm after a second, if
    nothing before."""
    child = os.fork()
    if child == 0:
        signal.alarm(1)
        getattr(torch.ones(2, device="hpu"), name)()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


assert end_of("exp") == -signal.SIGKILL
assert end_of("log") == -signal.SIGALRM

x = torch.full((2,), 0.5, device="hpu")
with pytest.raises(RuntimeError, match="aten::sin is not yet supported on HPU."):
    x.sin()
with pytest.raises(RuntimeError, match="Allocation failed for size"):
    x.tan_()
torch.testing.assert_close(x.cos().cpu(), 1.125 * torch.full((2,), 0.5).cos())
assert not (x > 0).any()
torch.testing.assert_close(torch._foreach_mul([x, x], 2.0)[1].cpu(), torch.full((2,), 1.125))
torch._foreach_mul_([x], 2.0)
torch.testing.assert_close(x.cpu(), torch.full((2,), 1.125))
with watch() as seen:
    x.sqrt()
assert seen.fallbacks == {"aten::sqrt": 1}

for text, reason in (
    ("break:aten::mm", "one of refuse, wrong"),
    ("wrong:aten::matmul", "got 'aten::matmul'"),
):
    with pytest.raises(ValueError, match=reason):
        _simulated.read_faults(text, {"aten::mm"})
assert _simulated.read_faults("", {"aten::mm"}) == []
leave()
