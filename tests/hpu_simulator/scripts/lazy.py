"""Checks in lazy mode, run by pytest in a process of its own: the bridge's overwrites of torch stay
in there."""

import copy
import inspect
import io
import json
import os
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.hpu_simulator import PACKAGE, load, phase, watch

load()

import habana_frameworks.torch.hpu as htorch  # noqa: E402
from habana_frameworks.torch import _op_lists, _release  # noqa: E402
from habana_frameworks.torch.core import add_step_closure, iter_mark_step, mark_step  # noqa: E402
from habana_frameworks.torch.hpu.metrics import metric_global, metric_localcontext, metrics  # noqa: E402


def on_hpu(value):
    """Tensors in nested tuples, on the device."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("hpu").requires_grad_(value.requires_grad)
    return type(value)(on_hpu(part) for part in value) if isinstance(value, tuple | list) else value


A, B = torch.linspace(-2, 2, 24).reshape(4, 6), torch.linspace(1, 3, 24).reshape(4, 6)
IMAGES = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)
OPERATORS = {
    "add": lambda a, b, i: a + 2 * b - 1,
    "matmul": lambda a, b, i: a @ b.T,
    "addmm": lambda a, b, i: torch.addmm(a, b[:, :4], b),
    "softmax": lambda a, b, i: F.log_softmax(a / 0.1, dim=-1),
    "norm": lambda a, b, i: F.layer_norm(F.normalize(a), (6,)),
    "views": lambda a, b, i: a.view(2, 12).unfold(1, 4, 4).transpose(0, 1).reshape(-1)[3:9].flip(0),
    "reductions": lambda a, b, i: torch.stack(
        [a.sum(), a.mean(), a.std(), a.max(), a.norm(), a.median()]
    ),
    "selection": lambda a, b, i: torch.cat(
        [a.topk(3).values, a.sort(dim=0).values[:, :2], a.gather(1, a.argsort())], dim=1
    ),
    "index": lambda a, b, i: a[torch.tensor([2, 0]).to(a.device)].masked_fill(b[:2] > 1.5, 0.5),
    "convolution": lambda a, b, i: F.conv2d(i, i[:, :, :3, :3], stride=2, padding=1),
    "batch norm": lambda a, b, i: F.batch_norm(i, None, None, training=True),
    "bicubic": lambda a, b, i: F.interpolate(i, scale_factor=1.5, mode="bicubic"),
    "attention": lambda a, b, i: F.scaled_dot_product_attention(i, i, i),
    "where": lambda a, b, i: torch.where(a > 0, a, 0.0).clamp(max=1.0).pow(2).lerp(b, 0.3),
    "in place": lambda a, b, i: a.clone().mul_(b).add_(1, alpha=2).sqrt_().nan_to_num_(),
    "foreach": lambda a, b, i: torch._foreach_mul(torch._foreach_add([a, b], [b, a], alpha=3), 0.5)[
        1
    ],
    "out": lambda a, b, i: torch.mul(a, b, out=torch.empty(0, device=a.device)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_give_what_the_cpu_gives(name):
    expected = OPERATORS[name](A, B, IMAGES)
    result = OPERATORS[name](*on_hpu((A, B, IMAGES)))
    assert result.device == torch.device("hpu:0")
    torch.testing.assert_close(result.cpu(), expected)


def test_gradients_are_those_of_the_cpu():
    def run(device):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 2), nn.Flatten(), nn.LayerNorm(196), nn.GELU(approximate="tanh")
        )
        model = model.to(device)
        model(IMAGES.to(device)).square().mean().backward()
        return [parameter.grad.cpu() for parameter in model.parameters()]

    for value, expected in zip(run("hpu"), run("cpu"), strict=True):
        torch.testing.assert_close(value, expected)


def test_exact_gelu_is_the_tanh_form_unless_switched_off():
    x = A.to("hpu").requires_grad_()
    F.gelu(x).sum().backward()
    reference = A.clone().requires_grad_()
    F.gelu(reference, approximate="tanh").sum().backward()
    torch.testing.assert_close(F.gelu(x).cpu(), F.gelu(reference, approximate="tanh"))
    torch.testing.assert_close(x.grad.cpu(), reference.grad)


def test_tensors_live_on_their_device():
    x = A.to("hpu")
    with pytest.raises(RuntimeError, match="found at least two devices, hpu:0 and cpu"):
        x + A
    assert (x + torch.tensor(1.0)).device.type == "hpu"
    with pytest.raises(RuntimeError, match="invalid device index 1"):
        torch.empty(2, device="hpu:1")
    assert copy.deepcopy(nn.Parameter(x)).device.type == "hpu"
    file = io.BytesIO()
    torch.save({"x": x}, file)
    file.seek(0)
    torch.testing.assert_close(torch.load(file, map_location="cpu")["x"], A)


def test_types_are_narrower_than_they_look():
    with pytest.raises(
        RuntimeError,
        match=r"cast Long to Int, Input values range \[5, 1099511627776\] exceeds Int range",
    ):
        torch.tensor([5, 2**40]).to("hpu")
    with pytest.raises(RuntimeError, match="Complex datatype is not supported on HPU device"):
        torch.zeros(2, dtype=torch.complex64, device="hpu")
    with watch() as seen:
        tenth = torch.tensor([0.1], dtype=torch.float64).to("hpu")
    assert seen.float64
    assert tenth.dtype == torch.float64 and tenth.item() == torch.tensor(0.1).item()
    assert torch.zeros(2, dtype=torch.float16, device="hpu").dtype == torch.float16


def test_random_numbers_repeat():
    def draw():
        torch.manual_seed(3)
        return [torch.rand(4, device="hpu").tolist(), torch.randperm(5, device="hpu").tolist()]

    assert draw() == draw()
    assert (
        torch.rand(3, device="hpu", generator=torch.Generator("hpu").manual_seed(1)).device.type
        == "hpu"
    )


def test_host_reads_are_counted_with_their_caller():
    x = A.to("hpu")
    with watch() as seen:
        x.sum().item()
        x.cpu()
        bool((x > 0).any())
        x.tolist()
        x.nonzero()
        str(x)
    assert [read.kind for read in seen.host_reads] == [
        "item",
        "copy",
        "item",
        "copy",
        "nonzero",
        "print",
    ]
    assert seen.host_reads[0].where.startswith("lazy.py:")
    with watch() as seen:
        buffer = torch.empty(4, 6).pin_memory()
        buffer.copy_(x, non_blocking=True)
        A.to("hpu", non_blocking=True)
    assert buffer.is_pinned() and not seen.host_reads and len(seen.queued_reads) == 1
    assert (seen.uploads.count, seen.uploads.bytes, seen.uploads.non_blocking) == (1, 96, 1)


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x, s: x.lerp(x, s), "weight=0.1 became weight=0.2"),
        (lambda x, s: x.clamp(max=s), "max=0.1 became max=0.2"),
        (lambda x, s: torch._foreach_mul([x], s), "scalar=0.1 became scalar=0.2"),
        (lambda x, s: x[int(10 * s)] + x[0], "offset 6 became .* offset 12"),
        (lambda x, s: x * s + s, None),
        (lambda x, s: x.addcmul(x, x, value=s) > s, None),
        (lambda x, s: x.lerp(x, torch.tensor(s).to("hpu")), None),
    ],
)
def test_a_python_number_is_part_of_the_graph_or_uploaded(function, named):
    x = A.to("hpu")
    mark_step()
    function(x, 0.1)
    mark_step()
    with watch() as seen:
        function(x, 0.2)
        mark_step()
    assert len(seen.graphs) == 1
    assert len(seen.new_graphs) == (named is not None)
    if named:
        difference = re.sub(r"0\.(1|2)0000+\d+", r"0.\1", seen.new_graphs[0].difference)
        assert re.search(named, difference), difference


def test_metrics_count_graphs_by_shape():
    metric = metric_global("graph_compilation")
    before = dict(metric.stats())["TotalNumber"]
    for size in (3, 5, 7, 3, 5, 7):
        torch.ones(size, device="hpu").cos().mul(1.5)
        mark_step()
    assert dict(metric.stats())["TotalNumber"] - before == 3
    assert metric_global("no such metric") is None
    with metric_localcontext("graph_compilation") as metric:
        torch.ones(9, device="hpu").cos().mul(1.5)
        mark_step()
    assert dict(metric.stats())["TotalNumber"] == 1
    with pytest.raises(metrics.MetricNotFound), metric_localcontext("no such metric"):
        pass


def test_fallbacks_are_counted():
    x = A.to("hpu")
    with watch() as seen:
        torch._foreach_norm([x, x])
        torch.histc(x, 3)
        x.sort(stable=True)
        x.repeat(1, 7).sort(stable=True)
        F.interpolate(IMAGES.to("hpu"), size=4, mode="bicubic", antialias=True)
    assert sorted(seen.fallbacks) == [
        "aten::_foreach_norm.Scalar", "aten::_upsample_bicubic2d_aa", "aten::histc", "aten::sort.stable"
    ]  # fmt: skip
    assert seen.fallbacks["aten::sort.stable"] == 1
    assert dict(metric_global("cpu_fallback").stats())["FallbackOps"]["aten::histc"] >= 1


def test_closures_run_at_the_cut():
    done = []
    add_step_closure(done.append, (1,))
    assert done == []
    assert iter_mark_step() is None and mark_step() is None
    assert done == [1]


def test_autocast_gives_the_types_of_the_bridge():
    vectors, images = torch.rand(2, 5, 6, device="hpu"), torch.rand(2, 3, 8, 8, device="hpu")
    norm, conv, linear = (
        m.to("hpu") for m in (nn.LayerNorm(6), nn.Conv2d(3, 6, 4), nn.Linear(6, 6))
    )
    with torch.autocast("hpu", dtype=torch.bfloat16):
        hidden = linear(norm(vectors))
        types = {
            "patches": conv(images),
            "cat": torch.cat([hidden, vectors], dim=1),
            "layer norm": norm(vectors),
            "gelu": F.gelu(hidden),
            "softmax": hidden.softmax(-1),
            "residual": vectors + hidden,
            "mean": vectors.mean(),
            "normalize": F.normalize(hidden),
            "in place": vectors.clone().add_(hidden),
            "exp": hidden.exp(),
        }
        log_softmax = F.log_softmax(vectors, dim=-1, dtype=torch.float32)
    low = {name for name, value in types.items() if value.dtype == torch.bfloat16}
    assert low == {"patches", "layer norm", "gelu", "softmax", "mean"}
    assert {value.dtype for value in types.values()} == {torch.bfloat16, torch.float32}
    rounded = F.log_softmax(vectors.bfloat16(), dim=-1, dtype=torch.float32)
    torch.testing.assert_close(log_softmax, rounded, rtol=0, atol=0)
    assert log_softmax.dtype == torch.float32


def test_lists_are_raw_lines(tmp_path, monkeypatch):
    path = tmp_path / "ops"
    path.write_bytes(b"add\nmm\r\n\nlinear ")
    monkeypatch.setenv("PT_HPU_AUTOCAST_LOWER_PRECISION_OPS_LIST", str(path))
    monkeypatch.setenv("PT_HPU_AUTOCAST_FP32_OPS_LIST", str(path) + ".missing")
    with pytest.warns(UserWarning, match="cannot be read"):
        policies = _op_lists.choose_policies()
    assert (policies["add"], policies["mm\r"], policies["linear "]) == ("lower", "lower", "lower")
    assert "mm" not in policies and policies["exp"] == "fp32" and policies["cat"] == "promote"


def test_waits_for_the_bridges_threads_are_counted():
    x, host = A.to("hpu"), A.pin_memory()
    mark_step()
    with watch() as seen:
        torch.manual_seed(0)
        x.copy_(host, non_blocking=True)
        x.mul(1.75)
        x.copy_(host, non_blocking=True)
        mark_step()
        x.mul(1.75)
        mark_step()
    assert [join.kind for join in seen.joins] == [
        "a number that is new",
        "copy into a tensor in use",
    ]
    assert seen.joins[0].where.startswith("lazy.py:")


def test_launches_are_counted_by_phase():
    x = A.to("hpu")
    with watch() as seen, phase("one"):
        y = (x * 2).t().sum(0).view(2, 2).to(torch.bfloat16)
        with phase("two"):
            y += torch.zeros(2, device="hpu")
            torch.histc(x, 3)
        y.cpu()
    assert seen.launches.operators == {"one": 3, "two": 2} and not seen.launches.graphs
    assert seen.launches.within("two") == {"aten::zero_": 1, "aten::add_.Tensor": 1}
    assert seen.views == 2


def test_memory_is_counted():
    before = htorch.memory_allocated()
    x = torch.zeros(1000, device="hpu")
    assert torch.hpu.memory_allocated() - before == 4000
    del x
    assert htorch.memory_allocated() == before
    assert htorch.max_memory_allocated() >= before + 4000
    assert not hasattr(torch.hpu, "empty_cache") and not hasattr(torch.hpu, "amp")


NOT_IN_THE_FACTS = {
    _release.table["missing_metric"],
    "DevMemMetric",
}  # the first by its name only, the other is later


def test_the_package_has_the_bridges_signatures():
    path = Path(os.environ.get("HABANA_API", "missing"))
    if not path.is_file():
        pytest.skip(
            "no recorded facts: shared/facts/habana_api.json is missing beside the checkout"
        )
    facts, wrong, unknown = json.loads(path.read_text()), [], []
    for file in sorted((PACKAGE / "habana_frameworks").rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if file.name in ("_simulated.py", "_release.py", "_op_lists.py") or not name.startswith(
            "habana_frameworks.torch."
        ):
            continue
        module = __import__(name, fromlist=["_"])
        for member, value in vars(module).items():
            if getattr(value, "__module__", None) != name or not (
                inspect.isfunction(value) or inspect.isclass(value)
            ):
                continue
            fact = facts.get(f"{name}.{member}")
            if fact is None:
                unknown += [f"{name}.{member}"] * (
                    not member.startswith("_") and member not in NOT_IN_THE_FACTS
                )
            elif inspect.isfunction(value) and fact["kind"] == "function":
                wrong += compare_signature(f"{name}.{member}", value, fact)
    assert (wrong, unknown) == ([], [])


def compare_signature(name, function, fact):
    """The name, if its arguments or their defaults are not those of the facts."""
    parameters = inspect.signature(function).parameters.values()
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    names = [stars.get(p.kind, "") + p.name for p in parameters]
    defaults = {
        p.name: repr(p.default) for p in parameters if p.default is not inspect.Parameter.empty
    }
    expected = {key: str(value) for key, value in fact.get("defaults", {}).items()}
    same = names == fact["args"] and defaults == expected
    return [] if same else [f"{name}{names}{defaults}, not {fact['args']}{expected}"]
