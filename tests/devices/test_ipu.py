"""The device that compiles the whole step: how it is compiled, what it refuses, what comes back to
the host."""

import math

import pytest
import torch

from dino.cli.options import parse
from dino.data.synthetic import make_batch
from dino.devices import open_device
from dino.devices.config import DeviceConfig, IpuConfig
from dino.devices.ipu.device import IpuDevice
from dino.devices.ipu.traced import ErfGelu, hold_as_buffers, name_tensors, replace_gelu
from dino.errors import DeviceError, NonFiniteError, OptionError
from dino.models.head import DINOHead
from dino.runtime.context import Run
from dino.runtime.distributed import Processes
from dino.runtime.launch import Launch
from dino.training import build
from dino.training.build import build_networks, build_program, build_recipe
from dino.training.checks import check_device
from dino.training.config import TrainConfig
from dino.training.loss import compute_loss
from dino.training.optim import build_optimizer
from dino.training.step_values import StepInputs
from tests.running import HALF_ON_CPU

SMALL = (
    "--arch",
    "vit_mini",
    "--patch_size",
    "8",
    "--global_crops_size",
    "16",
    "--local_crops_size",
    "8",
)
SMALL += (
    "--local_crops_number",
    "1",
    "--out_dim",
    "16",
    "--batch_size_per_device",
    "2",
    "--device",
    "ipu",
)
SMALL += ("--drop_path_rate", "0", "--eps", "1e-5")
INPUTS = StepInputs.on_host((0.001, 0.04, 0.9, 0.04, 1.0))
FROZEN = INPUTS._replace(train_last_layer=torch.tensor(0.0))


@pytest.fixture(autouse=True)
def _small_head(monkeypatch):
    monkeypatch.setattr(build, "DINOHead", lambda **words: DINOHead(**words, hidden_dim=16))


class Bench:
    """A step on the stand-in, and its batches."""

    def __init__(self, *words):
        self.options = options = parse(TrainConfig, [*SMALL, *words])
        self.device = open_device(
            options.device, precision=options.precision, compiled=options.compiled
        )
        check_device(options, self.device)
        run = Run(device=self.device, processes=Processes(Launch(), "gloo", "env://"))
        self.student, self.teacher = build_networks(options, run)
        self.program = build_program(options, self.student, self.teacher, run)
        self.optimizer = build_optimizer(
            options.optim.optimizer, self.student, eps=options.optim.eps
        )
        self.parts = self.device.count_micro_batches(options.run.accumulate_steps)
        self.step = self.device.compile_train(self.program, self.optimizer, self.parts)

    def batch(self, seed=0):
        size = self.options.data.batch_size_per_device * self.parts
        settings = {"device": torch.device("cpu"), "to_device": lambda tensor: tensor}
        return make_batch(build_recipe(self.options), size, seed=seed, **settings)

    def tensors(self):
        """Both networks and the moments, where the step is."""
        self.step.read_back()
        found = {
            f"{which}.{n}": t.clone()
            for which in ("student", "teacher")
            for n, t in self.network(which)
        }
        for place, state in enumerate(self.optimizer.state.values()):
            found |= {f"{place}.{key}": value.clone() for key, value in state.items()}
        return found

    def network(self, which):
        return getattr(self, which).state_dict().items()


def assert_close(one, other, tolerance=1e-6):
    assert one.keys() == other.keys()
    for name in one:
        assert torch.allclose(one[name], other[name], atol=tolerance), name


def test_the_teacher_moves_once_an_update_after_the_weights(poptorch):
    """A teacher of momentum m is m times itself and 1 - m times the new student, whatever is
    accumulated."""
    bench = Bench("--ga", "3", "--replica", "2")
    before = {name: tensor.clone() for name, tensor in bench.teacher.named_parameters()}
    for turn in range(3):
        bench.step(bench.batch(turn), INPUTS)
        bench.step.read_back()
        students, teachers = dict(bench.student.named_parameters()), name_tensors(bench.teacher)
        for name, old in before.items():
            assert torch.allclose(teachers[name], 0.9 * old + 0.1 * students[name], atol=1e-6), name
        before = {name: teachers[name].clone() for name in before}


def test_the_step_has_no_backward_pass_of_its_own(poptorch, monkeypatch):
    """The compiler makes it from the operations of the forward pass; the stand-in alone would take
    another."""

    def refuse(*_):
        raise AssertionError("an autograd.Function in a compiled step")

    monkeypatch.setattr(torch.autograd.Function, "apply", refuse)
    with pytest.raises(AssertionError):
        compute_loss(
            torch.zeros(4, 2), torch.ones(3, 2), torch.ones(3, 1), torch.full((2, 2, 3), 1 / 3)
        )
    bench = Bench("--ga", "3")
    bench.step(bench.batch(0), INPUTS)


def test_several_updates_a_call_equal_as_many_calls(poptorch):
    two, one = Bench("--ga", "2", "--di", "2"), Bench("--ga", "2")
    batch = two.batch()
    two.step(batch, INPUTS)
    center = one.program.center.clone()
    for half in range(2):
        one.program.center = center.clone()  # the host carries it, so it is the same within a call
        part = type(batch)(*(field.chunk(2)[half] for field in batch))
        one.step(part, INPUTS)
    assert_close(two.tensors(), one.tensors())
    assert two.device.updates_per_step == 2 and two.device.count_micro_batches(1) == 4


def test_a_frozen_last_layer_has_no_moments_and_thaws_from_none(poptorch):
    bench, calls = Bench("--ga", "2"), []
    wrap = poptorch.trainingModel
    bench.device.poptorch.trainingModel = lambda *words: calls.append(1) or wrap(*words)
    try:
        for turn in range(3):
            bench.step(bench.batch(turn), FROZEN)
        name, layer = "head.last_layer.weight_v", bench.student.head.last_layer.weight_v
        held = bench.tensors()[f"student.{name}"]
        state = bench.optimizer.state[layer]
        assert [float(part.abs().sum()) for part in state.values()] == [0.0, 0.0, 0.0]
        assert {float(s["step"]) for p, s in bench.optimizer.state.items() if p is not layer} == {
            3.0
        }
        assert torch.equal(held, Bench("--ga", "2").student.state_dict()[name])
        bench.step(bench.batch(3), INPUTS)
        assert len(calls) == 2  # compiled anew once
        assert not torch.equal(bench.tensors()[f"student.{name}"], held)
        assert float(state["step"]) == 1.0
    finally:
        bench.device.poptorch.trainingModel = wrap


def test_what_came_back_continues_to_the_same_numbers(poptorch):
    """Saved between two steps and taken into networks and optimizer of another run."""
    whole, first, second = (Bench("--ga", "2", "--replica", "2") for _ in range(3))
    for turn in range(4):
        whole.step(whole.batch(turn), FROZEN if turn < 1 else INPUTS)
    for turn in range(2):
        first.step(first.batch(turn), FROZEN if turn < 1 else INPUTS)
    first.step.read_back()
    first.step.read_back()  # a second save between the same steps changes nothing
    second.student.load_state_dict(first.student.state_dict())
    second.teacher.load_state_dict(first.teacher.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.program.load_state_dict(first.program.state_dict())
    for turn in range(2, 4):
        second.step(second.batch(turn), INPUTS)
        first.step(first.batch(turn), INPUTS)  # saving has not disturbed it either
    assert_close(second.tensors(), whole.tensors(), 1e-7)
    assert_close(first.tensors(), whole.tensors(), 0.0)
    assert torch.equal(first.program.center, whole.program.center)


def test_a_layout_places_both_networks_and_the_moving_teacher(poptorch):
    bench = Bench("--pipeline", "1", "2", "0", "--ga", "21")
    bench.step(bench.batch(), INPUTS)
    placed = bench.step.executor._context.placed
    for which in ("student", "teacher"):
        for name, _ in bench.network(which):
            if f"{which}.{name}" in placed:
                assert placed[f"{which}.{name}"] == bench.step.placement.chip_of(name), name
    assert {placed[f"student.{name}"] for name, _ in bench.student.named_parameters()} == {0, 1, 2}


@pytest.mark.parametrize("local_crops", [0, 1])
def test_the_least_accumulation_is_what_the_compiler_wants(poptorch, local_crops):
    least = 17
    words = (
        "--pipeline",
        "1",
        "2",
        "0",
        "--local_crops_number",
        local_crops,
        "--batch_size_per_device",
        "1",
    )
    words = tuple(map(str, words))
    with pytest.raises(
        OptionError,
        match=rf"`ga` must be >= {least}, the stages of `pipeline` 1 2 0 \(got {least - 1}\)",
    ):
        Bench(*words, "--ga", str(least - 1))
    bench = Bench(*words, "--ga", str(least))
    bench.step(bench.batch(), INPUTS)
    assert 2 * (bench.step.executor._context.switches + 1) - 1 == least


@pytest.mark.skipif(
    not HALF_ON_CPU, reason="this torch has no float16 on the CPU, and so has the stand-in"
)
def test_half_precision_stays_half_on_the_device_and_float32_in_files(poptorch):
    bench = Bench("--ga", "2", "--precision", "float16")
    bench.step(bench.batch(), INPUTS)
    assert {tensor.dtype for _, tensor in bench.network("student")} == {torch.float16}
    moments = {state["exp_avg"].dtype for state in bench.optimizer.state.values()}
    assert moments == {torch.float32} and bench.step.rule.loss_scaling == 128
    host = bench.device.to_host({"student": bench.student.state_dict(), "epoch": 1})
    assert {tensor.dtype for tensor in host["student"].values()} == {torch.float32} and host[
        "epoch"
    ] == 1


@pytest.mark.skipif(
    not HALF_ON_CPU, reason="this torch has no float16 on the CPU, and so has the stand-in"
)
def test_masterweight_keeps_float32_weights_and_computes_every_block_in_half(poptorch):
    bench, found = Bench("--ga", "2", "--precision", "masterweight"), set()
    for network in (bench.student, bench.teacher):
        for block in network.backbone.blocks:
            block.register_forward_hook(
                lambda _, given, result: found.add((given[0].dtype, result.dtype))
            )
    bench.step(bench.batch(), INPUTS)
    assert found == {(torch.float16, torch.float16)}
    assert {tensor.dtype for _, tensor in bench.network("student")} == {torch.float32}


def test_options_are_the_published_ones(poptorch):
    config = IpuConfig(replica=2, di=3, executable_cache_dir="somewhere", pipeline=(4, 4, 4, 0))
    options = IpuDevice("float16", config, synthetic=True).build_options(
        accumulated=64, chips=4, seed=7
    )
    assert (options.replication_factor, options.device_iterations) == (2, 3)
    assert options.Training.gradient_accumulation == 64 and options.auto_round_num_ipus
    assert (
        options.Training.accumulation_and_replication_reduction_type == poptorch.ReductionType.Mean
    )
    assert options.available_memory_proportion == dict.fromkeys(range(4), 0.15)
    assert options.output_mode == poptorch.OutputMode.All
    wanted = {"replicatedTensorSharding": 1, "minElementsForReplicatedTensorSharding": 4}
    assert options.TensorLocations.location_optimizer == wanted
    assert options._Popart.options == {
        "enableEngineCaching": True,
        "cachePath": "somewhere",
        "enableFloatingPointChecks": True,
        "enableStochasticRounding": True,
        "partialsTypeMatMuls": "half",
        "syntheticDataMode": 2,
    }
    plain = IpuDevice("float32", IpuConfig(rts=False, output_mode="final")).build_options(
        accumulated=1, chips=1, seed=0
    )
    assert (
        plain.output_mode == poptorch.OutputMode.Final
        and plain.TensorLocations.location_optimizer == {}
    )
    assert "enableStochasticRounding" not in plain._Popart.options


def test_clipping_is_of_all_gradients_together_and_only_when_asked(poptorch, caplog):
    caplog.set_level("INFO")
    bench = Bench("--ga", "2")
    bench.step(bench.batch(), INPUTS)
    assert bench.step.rule.max_grad_norm == float("inf") and "not clipped" in caplog.text
    caplog.clear()
    Bench("--ga", "2", "--clip_grad", "0")
    assert "not clipped" in caplog.text
    clipped = Bench("--ga", "2", "--clip_grad", "0.5")
    clipped.step(clipped.batch(), INPUTS)
    assert (
        clipped.step.rule.max_grad_norm == 0.5
        and "`clip_grad` 0.5, by the norm of all" in caplog.text
    )


def test_a_number_that_is_not_finite_ends_the_run_at_once_in_a_line(poptorch):
    bench = Bench("--ga", "2")
    with pytest.raises(
        NonFiniteError, match="the IPU stopped at a number that is not finite .* lower `lr`"
    ):
        bench.step(
            bench.batch(), INPUTS._replace(learning_rate=torch.tensor(math.nan))
        )  # the weights
    ruined = Bench("--ga", "2")
    torch.nn.init.constant_(ruined.student.backbone.cls_token, float("nan"))
    with pytest.raises(NonFiniteError, match="floating point"):
        ruined.step(ruined.batch(), INPUTS)  # the loss


def test_what_poptorch_refuses_is_one_line(poptorch):
    bench = Bench("--replica", "100", "--batch_size_per_device", "1")
    with pytest.raises(
        DeviceError,
        match="PopTorch could not train a step .*Too many IPUs requested.*check `replica`",
    ):
        bench.step(bench.batch(), INPUTS)
    bench = Bench("--ga", "2")
    bench.step(bench.batch(), INPUTS)
    bench.step.executor.destroy()
    with pytest.raises(DeviceError, match="PopTorch could not read the weights back"):
        bench.step.read_back()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("--ga 2 --accumulate_steps 3", "`ga` 2 and `accumulate_steps` 3 contradict each other"),
        ("--optimizer sgd", "supports only `optimizer` adamw"),
        ("--pipeline 2 2", "places 4 blocks, the backbone has 3"),
        (
            "--precision bf16",
            "`precision` bf16 is not supported on `device` ipu; give `precision` float32, float16 or",
        ),
        ("--hmp", "`hmp` is not supported on `device` ipu"),
        ("--compile", "`compile` is for other devices"),
        ("--recompute blocks", "`recompute` is not supported on `device` ipu"),
        ("--eval_knn_every 1", "score the checkpoints with eval_knn.py"),
        ("--ema_so nowhere.so", "`ema_so` nowhere.so cannot be loaded"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(poptorch, words, text):
    with pytest.raises(OptionError, match=text):
        Bench(*words.split())


@pytest.mark.parametrize(
    "setting",
    [
        {"pipeline": (3, 0)},
        {"replica": 2},
        {"ga": 2},
        {"di": 2},
        {"rts": False},
        {"executable_cache_dir": "elsewhere"},
        {"set_freq": 2},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_of_the_compiled_step_are_for_this_device_only(setting):
    open_device(DeviceConfig(device="cpu"), compiled=IpuConfig())
    with pytest.raises(
        OptionError, match=f"^`{next(iter(setting))}` is for `device` ipu only, and this is cpu"
    ):
        open_device(DeviceConfig(device="cpu"), compiled=IpuConfig(**setting))


def test_without_the_wrapper_it_is_one_line():
    with pytest.raises(
        DeviceError, match="`device` ipu needs PopTorch of the Poplar SDK, which is not installed"
    ):
        open_device(DeviceConfig(device="ipu"))


def test_a_wrapper_without_its_sdk_is_one_line(monkeypatch, tmp_path):
    (tmp_path / "poptorch.py").write_text("raise ImportError('Unable to import PopTorch')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        DeviceError,
        match=r"cannot be imported \(Unable to import PopTorch\); enable the Poplar SDK",
    ):
        open_device(DeviceConfig(device="ipu"))


def test_evaluation_is_compiled_inference(poptorch):
    bench = Bench("--ga", "1")
    backbone, images = bench.student.backbone.eval(), torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        wanted = backbone(images)
    infer = open_device(DeviceConfig(device="ipu")).compile_eval(backbone)
    assert torch.allclose(infer(images), wanted, atol=1e-6)
    with pytest.raises(DeviceError, match="PopTorch could not compute features .*Shape mismatch"):
        infer(images[:2])


def test_processes_that_poprun_did_not_start_are_refused(poptorch, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    bench = Bench.__new__(Bench)
    with pytest.raises(OptionError, match="poprun started 1 of 2 processes"):
        bench.__init__("--ga", "1")


def test_poprun_decides_how_many_copies_there_are(poptorch, monkeypatch):
    poprun = {
        "POPDIST_NUM_TOTAL_REPLICAS": "4",
        "POPDIST_NUM_LOCAL_REPLICAS": "2",
        "POPDIST_REPLICA_INDEX_OFFSET": "2",
    }
    for name, value in poprun.items():
        monkeypatch.setenv(name, value)
    device = IpuDevice("float32", IpuConfig(replica=1, ipu_per_replica=4))
    options = device.build_options(accumulated=1, chips=1, seed=0)
    assert device.config.replica == options.replication_factor == 2
    assert (options.Distributed.numProcesses, options.Distributed.processId) == (2, 1)


def test_written_out_gelu_is_the_exact_one():
    values = torch.linspace(-4, 4, 101)
    assert torch.allclose(
        ErfGelu(widened=False)(values), torch.nn.functional.gelu(values), atol=1e-6
    )
    half = ErfGelu(widened=True)(values.half())
    assert half.dtype == torch.float16 and torch.allclose(
        half.float(), torch.nn.functional.gelu(values), atol=4e-3
    )
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.GELU()))
    replace_gelu(network, widened=False)
    assert isinstance(network[1][0], ErfGelu)


def test_parameters_become_buffers_of_the_same_names():
    network = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.BatchNorm1d(2))
    names, before = (
        list(network.state_dict()),
        {n: t.clone() for n, t in network.state_dict().items()},
    )
    hold_as_buffers(network)
    assert not list(network.parameters()) and sorted(network.state_dict()) == sorted(names)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
