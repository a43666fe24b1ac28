"""The stand-in for PopTorch has the real one's names and signatures, and executes as its sources
say."""

import enum
import inspect
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("_TrainingOptions", "_PrecisionOptions", "_TensorLocationOptions", "_DistributedOptions")


@pytest.fixture
def facts(shared_facts):
    return json.loads((shared_facts / "poptorch_api.json").read_text(encoding="utf-8"))


def arguments(function, *, skip_self):
    """Names of the arguments, and how many of the last have defaults."""
    parameters = [
        p for p in inspect.signature(function).parameters.values() if p.kind != p.VAR_KEYWORD
    ]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.KEYWORD_ONLY)]
    names = [p.name for p in named][1 if skip_self else 0 :]
    return names, sum(p.default is not p.empty for p in named)


def check_callable(name, function, recorded, *, skip_self=False):
    names, defaults = arguments(function, skip_self=skip_self)
    assert names == recorded["args"], name
    assert defaults == len(recorded["defaults"]), name


def check_class(name, kind, recorded):
    if recorded["args"] is not None:
        check_callable(name, kind.__init__, recorded, skip_self=True)
    for method, function in vars(kind).items():
        if method.startswith("_") or not (
            inspect.isfunction(function) or isinstance(function, staticmethod)
        ):
            continue
        assert method in recorded["methods"], f"{name}.{method}"
        check_callable(f"{name}.{method}", getattr(kind, method), recorded["methods"][method])


def test_every_name_has_the_real_signature(poptorch, facts):
    seen = []
    places = [("poptorch", poptorch), ("poptorch.optim", poptorch.optim)]
    for prefix, module in places:
        for name, value in vars(module).items():
            full = f"{prefix}.{name}"
            if name.startswith("_") or inspect.ismodule(value) or full not in facts:
                continue
            recorded = facts[full]
            if isinstance(value, type) and issubclass(value, enum.Enum):
                assert {m.name: m.value for m in value} == recorded["members"], full
            elif recorded["kind"] == "class":
                check_class(full, value, recorded)
            elif recorded["kind"] == "function":
                check_callable(full, value, recorded)
            else:
                assert recorded["kind"] == "exception" and issubclass(value, Exception)
            seen.append(full)
    for name in GROUPS:
        check_class(
            f"poptorch.options.{name}",
            getattr(poptorch.options, name),
            facts[f"poptorch.options.{name}"],
        )
    assert {*seen} >= {f"poptorch.{name}" for name in poptorch.__all__} - {
        "poptorch.optim",
        "poptorch.options",
    }


def test_options_start_with_the_real_defaults(poptorch, facts):
    options, recorded = poptorch.Options(), facts["poptorch.Options"]["option_values"]
    assert options._values.keys() <= recorded.keys()
    for name, source in recorded.items():
        if name in options._values and not source.startswith("enums"):
            assert options._values[name] == eval(source), name  # noqa: S307 - recorded literals


def test_the_product_uses_real_names_only(facts):
    text = "".join(
        path.read_text() for path in sorted((ROOT / "dino" / "devices" / "ipu").glob("*.py"))
    )
    used = set(re.findall(r"\bpoptorch\.(\w+)", text)) - {"optim"}
    assert used and {f"poptorch.{name}" for name in used} <= facts.keys()
    executor = facts["poptorch.PoplarExecutor"]["methods"]
    assert set(re.findall(r"self\.executor\.(\w+)\(", text)) <= executor.keys()
    chains = {"options": "poptorch.Options", "Training": "poptorch.options._TrainingOptions"}
    chains |= {"Precision": "poptorch.options._PrecisionOptions"}
    chains |= {"TensorLocations": "poptorch.options._TensorLocationOptions"}
    for owner, name in chains.items():
        called = set(re.findall(rf"\b{owner}\.(\w+)\(", text))
        assert called and called <= facts[name]["methods"].keys(), owner


class Line(nn.Module):
    """y = w x + b over rows, its squared error, and a count of calls in a buffer."""

    def __init__(self, poptorch):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(1))
        self.poptorch = poptorch

    def forward(self, rows, targets):
        self.calls.add_(1)
        found = self.layer(rows)
        loss = (found - targets).square().mean()
        return found, self.poptorch.identity_loss(loss, "mean")


def build(poptorch, *, ga=1, replicas=1, di=1, mode=None, seed=0, **optimizer):
    torch.manual_seed(seed)
    model = Line(poptorch)
    options = poptorch.Options().replicationFactor(replicas).deviceIterations(di)
    options.Training.gradientAccumulation(ga)
    options.outputMode(poptorch.OutputMode.All if mode is None else mode)
    settings = {"lr": 0.1, "eps": 1e-5, "weight_decay": 0.1, **optimizer}
    rule = poptorch.optim.AdamW(model.parameters(), **settings)
    return model, rule, poptorch.trainingModel(model, options, rule)


def draw(count):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(count, 3, generator=generator), torch.randn(count, 2, generator=generator)


@pytest.mark.parametrize(("ga", "replicas", "di"), [*itertools.product((1, 3), (1, 2), (1, 2))])
def test_a_step_equals_a_plain_loop(poptorch, ga, replicas, di):
    model, _, executor = build(poptorch, ga=ga, replicas=replicas, di=di, loss_scaling=128.0)
    torch.manual_seed(0)
    plain = Line(poptorch)
    rule = torch.optim.AdamW(plain.parameters(), lr=0.1, eps=1e-5, weight_decay=0.1)
    rows, targets = draw(2 * ga * replicas * di)
    found, losses = executor(rows, targets)
    wanted = []
    for part, goal in zip(rows.chunk(di), targets.chunk(di), strict=True):
        outputs = [
            plain(*micro)
            for micro in zip(part.chunk(ga * replicas), goal.chunk(ga * replicas), strict=True)
        ]
        rule.zero_grad()
        torch.stack([loss for _, loss in outputs]).mean().backward()
        rule.step()
        wanted += outputs
    assert torch.allclose(found, torch.cat([each for each, _ in wanted]), atol=1e-6)
    assert torch.allclose(losses.reshape(-1), torch.stack([loss for _, loss in wanted]), atol=1e-6)
    state = model.state_dict()
    assert torch.allclose(state["layer.weight"], plain.layer.weight, atol=1e-6)
    assert (
        float(state["calls"]) == ga * di
    )  # buffers are there once a replica, and the first one comes back


def test_output_modes_give_their_shapes(poptorch):
    modes = {
        poptorch.OutputMode.All: (24, 12),
        poptorch.OutputMode.Final: (4, 2),
        poptorch.OutputMode.Default: (4, 2),
        poptorch.OutputMode.Sum: (4, 2),
    }
    for mode, (rows, losses) in modes.items():
        _, _, executor = build(poptorch, ga=3, replicas=2, di=2, mode=mode)
        found, loss = executor(*draw(24))
        assert (len(found), len(loss)) == (rows, losses), mode


def test_an_output_mode_that_is_not_imitated_is_refused(poptorch):
    with pytest.raises(NotImplementedError, match="EveryN"):
        poptorch.Options().outputMode(poptorch.OutputMode.EveryN, 2)


def test_a_batch_that_does_not_divide_and_a_shape_that_changes_are_errors(poptorch):
    _, _, executor = build(poptorch, ga=3, replicas=2)
    with pytest.raises(
        AssertionError, match=r"Invalid batch dimension: In the input torch.Size\(\[13, 3\]\)"
    ):
        executor(*draw(13))
    executor(*draw(12))
    with pytest.raises(poptorch.Error, match="Shape mismatch for rows: expected"):
        executor(*draw(6))
    with pytest.raises(poptorch.Error, match="Data type mismatch"):
        executor(*(part.half() for part in draw(12)))
    with pytest.raises(poptorch.Error, match="Mandatory parameter targets missing"):
        executor(draw(12)[0])


def test_options_are_checked_and_freeze(poptorch):
    options = poptorch.Options()
    with pytest.raises(AssertionError, match="Invalid option foo"):
        options.foo = 1
    with pytest.raises(AttributeError, match="Invalid attribute foo"):
        _ = options.foo
    with pytest.raises(
        AssertionError, match="Unexpected type <class 'str'> for option gradient_accumulation"
    ):
        options.Training.gradientAccumulation("3")
    with pytest.raises(ValueError):
        options.Precision.setPartialsType(torch.int32)
    poptorch.inferenceModel(nn.Linear(1, 1), options)
    for change in (
        lambda: options.deviceIterations(2),
        lambda: options.Training.gradientAccumulation(2),
    ):
        with pytest.raises(AttributeError, match="Can't modify frozen Options"):
            change()
    torch.manual_seed(5)
    poptorch.Options().randomSeed(7)
    assert torch.initial_seed() == 7  # as the real one's side effect


def test_rates_reach_the_device_by_set_optimizer_only_and_constants_do_not(poptorch):
    model, rule, executor = build(poptorch, lr=0.0, weight_decay=0.0)
    before = model.layer.weight.detach().clone()
    executor(*draw(2))
    rule.param_groups[0]["lr"] = 0.5
    executor(*draw(2))
    assert torch.equal(model.state_dict()["layer.weight"], before)
    executor.setOptimizer(rule)
    executor(*draw(2))
    assert not torch.equal(model.state_dict()["layer.weight"], before)
    _, constant, fixed = build(poptorch, lr=None, weight_decay=None)
    fixed(*draw(2))
    constant.param_groups[0]["lr"] = 0.5
    with pytest.raises(poptorch.Error, match="constant but do not match"):
        fixed.setOptimizer(constant)


def test_host_and_device_have_weights_of_their_own(poptorch):
    model, _, executor = build(poptorch)
    layer = model.layer
    first = layer.weight.detach().clone()
    executor(*draw(2))
    assert torch.equal(layer.weight, first)  # stale
    assert executor.copyWeightsToHostIfNeeded() and not torch.equal(layer.weight, first)
    assert not executor.copyWeightsToHostIfNeeded()
    with torch.no_grad():
        layer.weight.zero_()
    executor(*draw(2))
    assert (
        float(model.state_dict()["layer.weight"].detach().abs().min()) > 0
    )  # the host's edit was not seen
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
    executor.copyWeightsToDevice()
    found, _ = executor(*draw(2))
    assert float(found.abs().max()) == 0


def test_moments_come_back_and_go_in_again(poptorch):
    model, rule, executor = build(poptorch)
    assert rule.state_dict()["ipu_state"] is None
    for _ in range(2):
        executor(*draw(2))
    weights, state = {name: t.clone() for name, t in model.state_dict().items()}, rule.state_dict()
    assert {"Accl1___layer.weight", "Accl2___layer.bias", "Step___layer.bias"} <= state[
        "ipu_state"
    ].keys()
    executor(*draw(2))
    model2, rule2, again = build(poptorch, seed=3)
    nn.Module.load_state_dict(model2, weights)
    rule2.load_state_dict(state)
    again(*draw(2))
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, model2.state_dict()[name]), name
    with pytest.raises(RuntimeError, match="Only IPU optimizer states"):
        rule2.load_state_dict({**state, "ipu_state": None})


def test_wrapping_destroying_and_misuse(poptorch):
    model, rule, executor = build(poptorch)
    assert type(model).__name__ == "PoptorchLine" and isinstance(model, Line)
    with pytest.raises(RuntimeError, match="already been wrapped"):
        poptorch.trainingModel(model)
    with pytest.raises(poptorch.Error, match="not been compiled"):
        executor.copyWeightsToHost()
    executor(*draw(2))
    with pytest.raises(poptorch.Error, match="already attached"):
        executor.attachToDevice()
    executor.destroy()
    assert type(model) is Line
    poptorch.trainingModel(model, None, rule)(*draw(2))
    with pytest.raises(poptorch.Error, match="gradient accumulation to 1 for inference"):
        options = poptorch.Options()
        options.Training.gradientAccumulation(2)
        poptorch.inferenceModel(nn.Linear(1, 1), options)


class Bad(nn.Module):
    """What a traced forward pass must not do, by name."""

    def __init__(self, poptorch, kind):
        super().__init__()
        self.layer, self.poptorch, self.kind = nn.Linear(3, 1), poptorch, kind

    def forward(self, rows):
        if self.kind == "block":
            with self.poptorch.Block("ipu0", 0):
                rows = rows + 1
        loss = self.layer(rows).mean()
        if self.kind == "item" and float(loss) > 0:
            loss = loss + 1
        if self.kind in ("nonzero", "masked_select", "index"):
            mask = rows > 0
            chosen = {
                "nonzero": lambda: mask.nonzero(),
                "masked_select": lambda: rows.masked_select(mask),
                "index": lambda: rows[mask],
            }
            loss = loss + chosen[self.kind]().sum()
        if self.kind == "op":
            self.poptorch.custom_op([loss], "Missing", "com.acme", 1, [loss])
        return loss if self.kind == "loss" else self.poptorch.identity_loss(loss, "none")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("item", "aten::item is only supported in eager mode"),
        ("block", "all the ops must belong to a Block"),
        ("loss", "Couldn't find a loss"),
        ("op", "No class for com.acme.Missing:1"),
        ("nonzero", "aten::nonzero: the shape of the result depends on values"),
        ("masked_select", "aten::masked_select: the shape"),
        ("index", "aten::(index|nonzero): the shape"),
    ],
)
def test_what_tracing_refuses(poptorch, kind, text):
    with pytest.raises(poptorch.Error, match=text):
        poptorch.trainingModel(Bad(poptorch, kind))(torch.zeros(2, 3))


def test_custom_ops_wait_for_the_update_and_take_the_last_factor(poptorch):
    calls = []

    class Follow(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.follower = nn.Parameter(torch.zeros(3), requires_grad=False)

        def forward(self, rows, factor):
            poptorch.custom_op(
                [self.weight, self.follower, factor], "Follow", "test", 1, [self.weight]
            )
            return poptorch.identity_loss((rows * self.weight).mean(), "none")

    def follow(student, teacher, factor):
        calls.append((student.clone(), float(factor)))
        teacher.mul_(factor).add_(student * (1 - factor))

    from poptorch import ops

    ops.register("test", "Follow", 1, follow, deferred=True)
    model, options = Follow(), poptorch.Options()
    assert (
        float(poptorch.custom_op([model.weight], "Follow", "test", 1, [model.weight])[0].sum()) == 0
    )  # outside
    options.Training.gradientAccumulation(2)
    rule = poptorch.optim.AdamW([model.weight], lr=0.25, weight_decay=0.0)
    executor = poptorch.trainingModel(model, options, rule)
    executor(torch.ones(2, 3), torch.tensor([0.1, 0.5]))
    assert len(calls) == 1 and calls[0][1] == 0.5
    assert torch.allclose(calls[0][0], torch.full((3,), 0.75), atol=1e-6)  # after the update
    assert torch.allclose(model.state_dict()["follower"], torch.full((3,), 0.375), atol=1e-6)


def test_stages_and_chips_are_counted(poptorch):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 1)
            poptorch.BeginBlock(self.first, "ipu0", 0)
            poptorch.BeginBlock(self.second, "ipu1", 1)

        def forward(self, rows):
            return poptorch.identity_loss(self.second(self.first(rows)).mean(), "none")

    with pytest.raises(poptorch.Error, match="has already been assigned to a block"):
        poptorch.BeginBlock(Two().first, "ipu0", 0)
    with pytest.raises(poptorch.Error, match=r"number of pipeline stages \(3\) when using"):
        poptorch.trainingModel(Two())(torch.zeros(1, 3))
    options = poptorch.Options()
    options.Training.gradientAccumulation(3)
    executor = poptorch.trainingModel(Two(), options)
    executor(torch.zeros(3, 3))
    assert executor._context.placed == {
        "first.weight": 0,
        "first.bias": 0,
        "second.weight": 1,
        "second.bias": 1,
    }
    with pytest.raises(poptorch.Error, match="specifies the use of 6 IPUs"):
        options = poptorch.Options().replicationFactor(3)
        options.Training.gradientAccumulation(3)
        poptorch.trainingModel(Two(), options)(torch.zeros(9, 3))
