"""Checkpoints of the published IPU code become ours and theirs again, every tensor of them."""

import argparse
import math

import pytest
import torch

import extract_weights
from dino import checkpoint
from dino.cli.convert import convert_ipu
from dino.errors import CheckpointError, OptionError, WeightsError
from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.registry import build_backbone
from dino.training.optim import build_optimizer
from dino.weights.ipu_checkpoint import is_published, read_published, write_published

PROTOTYPES, PATCH, SIZE = 16, 8, 16


def build_network(*, norm_last_layer=True, use_bn=False):
    backbone = build_backbone("vit_mini", patch_size=PATCH, img_size=SIZE)
    head = DINOHead(
        in_dim=96, out_dim=PROTOTYPES, hidden_dim=16, use_bn=use_bn, norm_last_layer=norm_last_layer
    )
    return MultiCrop(backbone, head)


def make_published(*, half=False, norm_last_layer=True, compiled=True, seed=0):
    """A checkpoint as the published code writes it: its names, its four groups, the state of the
    compiled optimizer."""
    torch.manual_seed(seed)
    model, wrapper = {}, []
    for network in ("student", "teacher"):
        for name, tensor in build_network().backbone.state_dict().items():
            model[f"{network}.{name}"] = torch.randn_like(tensor)
        for name, tensor in build_network().head.mlp.state_dict().items():
            model[f"{network}_head.mlp.{name}"] = torch.randn_like(tensor)
        for part in ("last_layer1", "last_layer2"):
            norms = (
                torch.ones(PROTOTYPES // 2, 1)
                if norm_last_layer
                else torch.rand(PROTOTYPES // 2, 1)
            )
            model |= {
                f"{network}_head.{part}.weight_g": norms,
                f"{network}_head.{part}.weight_v": torch.randn(PROTOTYPES // 2, 256),
            }
    model = {name: tensor.half() if half else tensor for name, tensor in model.items()}
    names = [name for name in model if name.startswith("student")]
    last = [[n for n in names if n.endswith(part)] for part in ("weight_g", "weight_v")]
    wrapper = [n for n in names if n not in (*last[0], *last[1])]
    groups = [
        [n for n in wrapper if model[n].ndim > 1],
        [n for n in wrapper if model[n].ndim == 1],
        *last,
    ]
    ends = [sum(map(len, groups[:place])) for place in range(5)]
    optimizer = {
        "state": {},
        "param_groups": [
            {
                **{"params": list(range(ends[place], ends[place + 1])), "lr": 0.001 * (place + 1)},
                **{"weight_decay": 0.04 * (place != 1), "betas": (0.9, 0.999), "eps": 1e-5},
            }
            for place in range(4)
        ],
        "ipu_state": None,
        "ipu_param": None,
    }
    if compiled:
        optimizer["ipu_state"] = {
            **{f"Accl1___{n}": torch.randn(model[n].shape) for n in names},
            **{f"Accl2___{n}": torch.rand(model[n].shape) for n in names},
            **{f"Step___{n}": torch.tensor(7.0) for n in names},
        }
        optimizer["ipu_param"] = {
            **{f"learningRate___specific___{n}": torch.tensor(0.5) for n in names},
            "lossScaling_FLOAT": torch.tensor(128.0),
        }
    return {
        "model": model,
        "optimizer": optimizer,
        "center": torch.randn(1, PROTOTYPES),
        "epoch": 4,
    }


def assert_equal(one, other, place=""):
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other), place
    else:
        assert one == other, place


KINDS = pytest.mark.parametrize(
    "kind",
    [
        {},
        {"half": True},
        {"norm_last_layer": False},
        {"compiled": False},
        {"half": True, "norm_last_layer": False},
    ],
    ids=str,
)


@KINDS
def test_there_and_back_is_the_same_file(kind, tmp_path):
    published = make_published(**kind)
    checkpoint.save_file(tmp_path / "ours.pth", read_published(published))
    assert_equal(write_published(checkpoint.load_file(tmp_path / "ours.pth")), published)


@KINDS
def test_networks_and_optimizer_of_ours_take_it(kind):
    published = make_published(**kind)
    ours = read_published(published)
    student = build_network(norm_last_layer=kind.get("norm_last_layer", True))
    student.load_state_dict(
        {name.removeprefix("module."): t for name, t in ours["student"].items()}
    )
    build_network().load_state_dict(ours["teacher"])
    optimizer = build_optimizer("adamw", student)
    optimizer.load_state_dict(ours["optimizer"])
    assert ours["epoch"] == 5 and ours["dino_loss"]["center"] is published["center"]
    if kind.get("compiled", True):
        found = {
            name: optimizer.state[p]
            for name, p in student.named_parameters()
            if p in optimizer.state
        }
        theirs = published["optimizer"]["ipu_state"]
        assert torch.equal(
            found["backbone.pos_embed"]["exp_avg"], theirs["Accl1___student.pos_embed"]
        )
        halves = [theirs[f"Accl2___student_head.last_layer{half}.weight_v"] for half in (1, 2)]
        assert torch.equal(found["head.last_layer.weight_v"]["exp_avg_sq"], torch.cat(halves))
        assert float(found["head.mlp.0.bias"]["step"]) == 7


def test_prototypes_are_in_the_order_of_the_halves():
    """Logits of the two halves, joined, are the logits of ours."""
    published = make_published(norm_last_layer=False)
    teacher = build_network()
    teacher.load_state_dict(read_published(published)["teacher"])
    vectors, halves = torch.randn(3, 256), []
    for half in (1, 2):
        g, v = (published["model"][f"teacher_head.last_layer{half}.weight_{part}"] for part in "gv")
        halves.append(vectors @ (torch.nn.functional.normalize(v, dim=1) * g).T)
    assert torch.allclose(teacher.head.last_layer(vectors), torch.cat(halves, dim=1), atol=1e-5)


def test_an_original_checkpoint_becomes_theirs_and_comes_back():
    """As the original writes it: DDP's prefix, two groups of torch's AdamW, options as a namespace,
    trained norms."""
    student = build_network(norm_last_layer=False)
    groups = build_optimizer("adamw", student).param_groups
    rule = torch.optim.AdamW(
        [{"params": groups[0]["params"]}, {"params": groups[1]["params"], "weight_decay": 0.0}]
    )
    torch.stack([p.square().sum() for p in student.parameters()]).sum().backward()
    rule.step()
    original = {
        "student": {f"module.{name}": t for name, t in student.state_dict().items()},
        "teacher": build_network().state_dict(),
        "optimizer": rule.state_dict(),
        "epoch": 3,
        "args": argparse.Namespace(norm_last_layer=False, arch="vit_mini"),
        "dino_loss": {"center": torch.randn(1, PROTOTYPES)},
    }
    theirs = write_published(original)
    assert is_published(theirs) and theirs["epoch"] == 2
    sizes = [len(group["params"]) for group in theirs["optimizer"]["param_groups"]]
    assert sizes == [18, 30, 2, 2]  # of the published code with this network
    assert theirs["model"]["student_head.last_layer2.weight_v"].shape == (PROTOTYPES // 2, 256)
    back = read_published(theirs)
    assert_equal(back["student"], original["student"])
    assert_equal(back["teacher"], dict(original["teacher"]))
    for place, state in original["optimizer"]["state"].items():
        assert_equal(back["optimizer"]["state"][place], state)


def test_what_is_neither_is_refused_by_what_it_lacks():
    with pytest.raises(
        CheckpointError, match="lacks student, teacher, optimizer, epoch, dino_loss"
    ):
        write_published({"weight": torch.ones(1)})
    broken = make_published()
    del broken["model"]["teacher_head.last_layer2.weight_v"]
    with pytest.raises(CheckpointError, match="lacks teacher_head.last_layer2.weight_v"):
        read_published(broken)


def of_sgd(ours):
    for state in ours["optimizer"]["state"].values():
        state["momentum_buffer"] = state.pop("exp_avg")


def without_groups(ours):
    ours["optimizer"]["param_groups"] = []


def without_weights(ours):
    ours["student"] = 3


def of_a_convnet(ours):
    ours["student"] = {name: t for name, t in ours["student"].items() if "pos_embed" not in name}


def of_odd_prototypes(ours):
    ours["teacher"] = {n: t[:-1] if "last_layer" in n else t for n, t in ours["teacher"].items()}


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (of_sgd, "the optimizer must be AdamW with the two groups"),
        (without_groups, "the optimizer must be AdamW with the two groups"),
        (without_weights, "its student holds no weights by name"),
        (of_a_convnet, "the student must be a vision transformer"),
        (
            of_odd_prototypes,
            rf"the teacher must have an even number of prototypes .* \(got {PROTOTYPES - 1}\)",
        ),
    ],
)
def test_what_the_published_code_has_no_place_for_is_refused_in_a_line(spoil, text):
    ours = read_published(make_published())
    spoil(ours)
    with pytest.raises(CheckpointError, match=text):
        write_published(ours)


def test_the_command_tells_the_direction_from_the_file(tmp_path):
    published = make_published()
    checkpoint.save_file(tmp_path / "theirs.pth", published)
    convert_ipu([str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")])
    convert_ipu([str(tmp_path / "ours.pth"), str(tmp_path / "again.pth")])
    assert_equal(checkpoint.load_file(tmp_path / "again.pth"), published)
    with pytest.raises(OptionError, match="is the input file"):
        convert_ipu([str(tmp_path / "ours.pth"), str(tmp_path / "ours.pth")])


@pytest.mark.parametrize("form", ["ours", "original", "published", "published half"])
def test_extract_weights_gives_a_plain_backbone_of_any_checkpoint(tmp_path, form):
    if form == "original" and not hasattr(torch.serialization, "safe_globals"):
        pytest.skip("this torch cannot be told that namespaces may be read")
    published = make_published(half="half" in form)
    ours = read_published(published)
    states = {
        "ours": {**ours, "args": {"arch": "vit_mini", "patch_size": PATCH}},
        "original": {**ours, "args": argparse.Namespace(arch="vit_mini", patch_size=PATCH)},
    }
    checkpoint.save_file(tmp_path / "checkpoint.pth", states.get(form, published))
    words = ("--weights", tmp_path / "checkpoint.pth", "--output", tmp_path / "vit_model.pth")
    extract_weights.main([*map(str, words), "--arch", "vit_mini"])
    plain = checkpoint.load_file(tmp_path / "vit_model.pth")
    wanted = {
        n.removeprefix("teacher."): t
        for n, t in published["model"].items()
        if n.startswith("teacher.")
    }
    assert_equal(dict(plain), {name: tensor.float() for name, tensor in wanted.items()})
    assert math.isclose(float(plain["cls_token"].sum()), float(wanted["cls_token"].float().sum()))


def test_extract_weights_never_writes_half_a_backbone(tmp_path):
    published = make_published()
    del published["model"]["teacher.norm.bias"]
    checkpoint.save_file(tmp_path / "checkpoint.pth", published)
    main = extract_weights.main
    with pytest.raises(WeightsError, match=r"norm\.bias"):
        main(["--weights", str(tmp_path / "checkpoint.pth"), "--output", str(tmp_path / "out.pth")])
    assert not (tmp_path / "out.pth").exists()
    with pytest.raises(OptionError, match="name both files"):
        main(["--weights", str(tmp_path / "checkpoint.pth")])


@pytest.mark.parametrize("key", ["model", "optimizer", "center", "epoch"])
@pytest.mark.parametrize("value", ["words", [torch.zeros(2)], {"a": torch.zeros(2)}])
def test_their_file_with_a_damaged_entry_is_one_line(key, value, tmp_path):
    torch.save({**make_published(), key: value}, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError) as caught:
        convert_ipu([str(tmp_path / "theirs.pth"), str(tmp_path / "ours.pth")])
    assert "\n" not in str(caught.value) and not (tmp_path / "ours.pth").exists()
