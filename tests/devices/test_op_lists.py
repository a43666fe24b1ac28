"""Two lists of ops decide which op runs in which number format: read, translated, checked, and
followed on the CPU."""

import json
import os

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dino.cli.options import parse
from dino.devices import open_device
from dino.devices.op_lists import (
    PROMOTED,
    CastingOps,
    find_computing_ops,
    find_functions,
    find_overloads,
    read_op_lists,
)
from dino.errors import OptionError
from dino.training.config import TrainConfig
from tests import hpu_simulator
from tests.running import SERVER, on_simulated_card

BF16, FP32 = torch.bfloat16, torch.float32
# Of every op in the two lists one call, on float values x (4, 4).
CALLS = {
    "add": lambda x: torch.add(x, x),
    "addmm": lambda x: torch.addmm(x, x, x),
    "bmm": lambda x: torch.bmm(x[None], x[None]),
    "dot": lambda x: torch.dot(x[0], x[1]),
    "dropout": lambda x: F.dropout(x, 0.5),
    "layer_norm": lambda x: F.layer_norm(x, (4,)),
    "linear": lambda x: F.linear(x, x),
    "matmul": lambda x: x @ x,
    "mean": lambda x: x.mean(dim=0),
    "mm": lambda x: torch.mm(x, x),
    "mul": lambda x: x * x,
    "rsub": lambda x: torch.rsub(x, x),
    "binary_cross_entropy": lambda x: F.binary_cross_entropy(
        x.abs().clamp(max=1), x.abs().clamp(max=1)
    ),
    "cross_entropy_loss": lambda x: F.cross_entropy(
        x, torch.zeros(4, dtype=torch.int64, device=x.device)
    ),
    "embedding": lambda x: F.embedding(torch.zeros(4, dtype=torch.int64, device=x.device), x),
    "log_softmax": lambda x: x.log_softmax(dim=0),
    "softmax": lambda x: x.softmax(dim=0),
}


class Types(TorchDispatchMode):
    """Number format of the first floating input of each op that is no cast, in order."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        floats = [a for a in args if isinstance(a, torch.Tensor) and a.is_floating_point()]
        if floats and op.overloadpacket.__name__ not in {
            "_to_copy",
            "detach",
            "select",
            "unsqueeze",
            "abs",
            "clamp",
        }:
            self.seen.append(floats[0].dtype)
        return op(*args, **(kwargs or {}))


def read(*words):
    return read_op_lists(parse(TrainConfig, list(words)).precision)


@pytest.fixture
def write(tmp_path):
    """Write the two lists; gives the words that name them."""

    def build(low, high=""):
        for name, text in (("low", low), ("high", high)):
            (tmp_path / name).write_text(text, encoding="utf-8")
        return ["--hmp-bf16", str(tmp_path / "low"), "--hmp-fp32", str(tmp_path / "high")]

    return build


@pytest.fixture
def casting():
    """Install a policy on the CPU; gone after the test."""
    installed = []

    def build(lists):
        installed.append(CastingOps("cpu", lists))
        return installed[-1]

    yield build
    for each in installed:
        each.close()


def test_the_lists_at_the_top_are_the_references_and_are_found_from_anywhere(
    tmp_path, monkeypatch, caplog
):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO")
    lists = read()
    assert lists.bf16 == tuple(
        "add addmm bmm dot dropout layer_norm linear matmul mean mm mul rsub".split()
    )
    assert lists.fp32 == (
        "binary_cross_entropy",
        "cross_entropy_loss",
        "embedding",
        "log_softmax",
        "softmax",
    )
    assert lists.promoted == ("addcdiv", "addcmul", "cat", "div", "exp", "pow", "stack", "sub")
    assert "ops_bf16.txt line 6: iadd is ignored: no op" in caplog.text
    assert "ops_fp32.txt line 2: cross_entropy means cross_entropy_loss" in caplog.text


def test_every_op_of_the_lists_has_a_call_here():
    assert CALLS.keys() == {*read().bf16, *read().fp32}


@pytest.mark.parametrize("name", CALLS)
def test_each_op_runs_in_the_format_of_its_list(name, casting):
    lists = read()
    wanted, given = (BF16, FP32) if name in lists.bf16 else (FP32, BF16)
    with casting(lists).autocast(), Types() as types:
        CALLS[name](torch.rand(4, 4).to(given))
    assert types.seen[0] == wanted


@pytest.fixture(scope="module")
def on_card(tmp_path_factory):
    """The formats in which a simulated card ran each op, read in a process whose bridge was given
    the lists."""
    reason = hpu_simulator.why_unavailable()
    if reason:
        pytest.skip(f"no simulated hpu: {reason}")
    path = tmp_path_factory.mktemp("card") / "formats.json"
    process = SERVER.Process(target=run_on_card, args=(str(path),))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    return json.loads(path.read_text())


def run_on_card(path):
    on_simulated_card()
    options = parse(TrainConfig, ["--device", "hpu", "--hmp"])
    device = open_device(options.device, precision=options.precision)
    found = {}
    for name, call in CALLS.items():
        given = FP32 if name in read().bf16 else BF16
        with device.autocast(), Types() as types:
            call(torch.rand(4, 4).to(given).to("hpu"))
        found[name] = str(types.seen[0])
    with open(path, "w", encoding="utf-8") as file:
        json.dump(found, file)


@pytest.mark.parametrize("name", CALLS)
def test_each_op_runs_in_the_same_format_on_a_card(name, on_card):
    assert on_card[name] == str(BF16 if name in read().bf16 else FP32)


@pytest.mark.parametrize("name", [name for name in PROMOTED if name not in CALLS])
def test_promoted_ops_take_the_widest_of_their_inputs(name, casting):
    low, wide = torch.rand(3, 3).to(BF16), torch.rand(3, 3)
    calls = {
        "cat": lambda a, b: torch.cat([a, b]),
        "stack": lambda a, b: torch.stack([a, b]),
        "exp": lambda a, b: torch.exp(b),
        "addcdiv": lambda a, b: torch.addcdiv(a, b, a),
        "addcmul": lambda a, b: torch.addcmul(a, b, a),
    }
    call = calls.get(name, getattr(torch, name))
    with casting(read()).autocast():
        assert call(low, wide).dtype == FP32
        assert call(low, low).dtype == BF16


def test_ops_outside_the_lists_follow_their_inputs(casting):
    low, wide = torch.rand(1, 3, 8, 8).to(BF16), torch.rand(1, 3, 8, 8)
    with casting(read()).autocast():
        for image in (low, wide):
            weight = torch.rand(2, 3, 3, 3).to(image.dtype)
            assert (
                F.conv2d(image, weight).dtype
                == F.gelu(image).dtype
                == image.sum().dtype
                == image.dtype
            )


def test_a_normalization_casts_its_input_and_not_its_weights(casting):
    with casting(read()).autocast(), Types() as types:
        weight = torch.ones(4, requires_grad=True)
        normed = F.layer_norm(torch.rand(4, 4), (4,), weight, weight)
    assert normed.dtype == BF16 and types.seen[0] == BF16 and weight.dtype == FP32


def test_whole_numbers_and_64_bits_are_left_alone(casting):
    with casting(read()).autocast():
        assert torch.mul(torch.arange(3), 2).dtype == torch.int64
        assert (torch.rand(2, 2).double() @ torch.rand(2, 2).double()).dtype == torch.float64


def test_gradients_come_back_in_the_weights_format(casting):
    layer = torch.nn.Linear(4, 2)
    with casting(read()).autocast():
        layer(torch.rand(3, 4)).sum().backward()
    assert layer.weight.grad.dtype == FP32


def test_torchs_own_autocast_returns_with_the_end(casting):
    x = torch.rand(2, 3, 8, 8)
    casting(read()).close()
    with torch.autocast("cpu", dtype=BF16):
        assert F.conv2d(x, torch.rand(2, 3, 3, 3)).dtype == BF16
    assert (x @ x).dtype == FP32


def test_level_o2_puts_all_but_the_second_list_into_bf16(casting):
    lists = read("--hmp-opt-level", "O2")
    assert {"conv2d", "gelu", "sum", "exp", "linear"} <= set(lists.bf16)
    assert not {"softmax", "to", "view", "detach", "clone", "transpose"} & set(lists.bf16)
    image = torch.rand(1, 3, 8, 8)
    with casting(lists).autocast():
        assert F.gelu(F.conv2d(image, torch.rand(2, 3, 3, 3))).dtype == BF16
        assert image.to(BF16).softmax(dim=1).dtype == FP32
        assert image.float().transpose(1, 2).dtype == FP32


@pytest.mark.parametrize(
    ("line", "near"), [("linaer", "linear"), ("aten::add", "add"), ("Softmax", "softmax")]
)
def test_an_unknown_name_is_an_error_with_its_line_and_the_nearest_op(write, line, near):
    with pytest.raises(
        OptionError,
        match=rf"`hmp_bf16` .*low line 3: no op is named '{line}': did you mean \w*{near}",
    ):
        read(*write(f"add\n\n{line}\n"))


def test_spaces_comments_and_empty_lines_are_not_names(write):
    lists = read(*write("  add \r\n\n# why\nmm # products\n", "truediv\n"))
    assert (lists.bf16, lists.fp32) == (("add", "mm"), ("div",))


def test_a_name_in_both_lists_is_named_and_runs_in_bf16(write, caplog):
    lists = read(*write("add\nexp", "exp"))
    assert (lists.bf16, lists.fp32) == (("add", "exp"), ())
    assert "exp: in both op lists" in caplog.text


def test_a_missing_list_is_named():
    with pytest.raises(OptionError, match="`hmp_fp32` gone.txt cannot be read"):
        read("--hmp-fp32", "gone.txt")


def test_a_list_that_never_ends_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (str(tmp_path / "pipe"), "/dev/zero", "x" * 5000):
        with pytest.raises(OptionError, match="`hmp_fp32` .* cannot be read"):
            read("--hmp-fp32", path)


def test_the_names_that_a_list_may_hold_are_the_bridges(shared_facts):
    theirs = json.loads(
        (shared_facts / "hpu_autocast_names_torch25.json").read_text(encoding="utf-8")
    )
    # Three functions are gone since torch 2.5.
    assert theirs.keys() - find_functions() <= {"align_tensors", "cholesky", "qr"}
    for name in ("add", "linear", "softmax"):
        assert {str(overload).removeprefix("aten.") for overload in find_overloads(name)} >= {
            f"{name}.default" if full == name else full
            for full in theirs[name]
            if "Dimname" not in full
        }


def test_computing_ops_are_no_views_and_nothing_private():
    names = set(find_computing_ops())
    assert {"add", "linear", "conv2d", "gelu"} <= names
    assert not {"view", "detach", "to", "expand", "_softmax", "add_", "clone"} & names
