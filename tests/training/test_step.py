"""One step of DINO: the original's trajectory, micro-batches, and steps that are masked."""

import copy
import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from dino.data.crops import Crops
from dino.data.photometric import PARAMETERS, RADIUS, Normalization
from dino.devices import open_device
from dino.devices.config import DeviceConfig
from dino.models.depth import draw_depth
from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.vit import VisionTransformer
from dino.training.ema import build_teacher
from dino.training.optim import OPTIMIZERS, build_optimizer
from dino.training.step import DinoProgram
from dino.training.step_values import METERS, NON_FINITE_LIMIT, StepInputs, count_non_finite

pytestmark = pytest.mark.usefixtures("device")

INPUTS = StepInputs.on_host(
    (0.001, 0.04, 0.9, 0.04, 1.0)
)  # learning rate, weight decay, momentum, temperature, last layer trains
PROTOTYPES = 32


class Views(NamedTuple):
    """Views that are already what `augment` gives."""

    large: Tensor
    small: Tensor


class GivenViews(DinoProgram):
    """The step without its augmentation."""

    def augment(self, batch, *, eager=False):
        return tuple(batch)


class Bench:
    """A program bound to an optimizer, in fp32."""

    def __init__(self, student, teacher, *, kind=DinoProgram, optimizer="adamw", micro_batches=1):
        self.student, self.teacher = student, teacher
        prototypes = len(teacher.head.last_layer.weight_v)
        device = open_device(DeviceConfig(device=torch.get_default_device().type))
        self.program = kind(
            student=student,
            teacher=teacher,
            prototypes=prototypes,
            normalization=Normalization(),
            clip_grad=3.0,
        )
        self.optimizer = build_optimizer(optimizer, student, fused=device.fuses_updates)
        self.step = device.compile_train(self.program, self.optimizer, micro_batches)

    def meter(self, name):
        return float(self.program.meters[METERS.index(name)])

    def bits(self):
        """Everything that a masked step leaves alone."""
        tensors = {**{f"student.{k}": v for k, v in self.student.state_dict().items()}}
        tensors |= {f"teacher.{k}": v for k, v in self.teacher.state_dict().items()}
        for place, state in enumerate(self.optimizer.state.values()):
            tensors |= {f"optimizer.{place}.{k}": v for k, v in state.items()}
        tensors |= {"centre": self.program.center, "meters": self.program.meters}
        return {name: tensor.detach().cpu().numpy().tobytes() for name, tensor in tensors.items()}


def build_golden_network(*, norm_last_layer):
    backbone = VisionTransformer(embed_dim=48, depth=2, heads=3)
    head = DINOHead(
        in_dim=48, out_dim=256, hidden_dim=64, bottleneck_dim=32, norm_last_layer=norm_last_layer
    )
    return MultiCrop(backbone, head)


def build_bench(seed=0, use_bn=False, **more):
    torch.manual_seed(seed)
    networks = []
    for norm_last_layer in (False, True):
        backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=12, depth=1, heads=2)
        shape = {"in_dim": 12, "out_dim": PROTOTYPES, "hidden_dim": 16, "bottleneck_dim": 8}
        networks.append(
            MultiCrop(backbone, DINOHead(**shape, use_bn=use_bn, norm_last_layer=norm_last_layer))
        )
    return Bench(networks[0], build_teacher(networks[1], networks[0]), **more)


def draw_views(seed, images=2):
    """Already where the network is: these steps have no augmentation to bring them there."""
    generator = torch.Generator().manual_seed(seed)
    sizes = ((2 * images, 3, 16, 16), (3 * images, 3, 8, 8))
    drawn = (torch.randn(size, generator=generator, device="cpu") for size in sizes)
    return Views(*(views.to(torch.get_default_device()) for views in drawn))


def draw_crops(seed, images=16, local_views=3):
    """On the host, as the loader gives them."""
    generator = torch.Generator().manual_seed(seed)

    def group(views, size):
        pixels = torch.randint(
            0, 256, (images, views, size, size, 3), dtype=torch.uint8, generator=generator
        )
        rows = torch.zeros(images, views, PARAMETERS)
        rows[..., :5] = torch.randint(0, 2, (images, views, 5), generator=generator)
        rows[..., 5:9] = torch.tensor([1.2, 0.8, 1.1, 0.05])
        rows[..., 9:13] = torch.tensor([2.0, 0.0, 3.0, 1.0])
        rows[..., RADIUS] = 1.0
        return pixels, rows

    with torch.device("cpu"):
        return Crops(*group(2, 16), *group(local_views, 8), torch.zeros(images, dtype=torch.int64))


def run_trajectory(arrays, draw):
    """The golden eight steps; gives the bench, the losses and the centers."""
    student, teacher = (
        build_golden_network(norm_last_layer=False),
        build_golden_network(norm_last_layer=True),
    )
    student.load_state_dict(
        {k.removeprefix("init/"): torch.as_tensor(v) for k, v in arrays.items() if "init/" in k}
    )
    bench = Bench(student, build_teacher(teacher, student), kind=GivenViews)
    losses, centers = [], []
    for iteration in range(8):
        views = [
            draw(200 + 10 * iteration + view, 2, 3, *[224 if view < 2 else 96] * 2)
            for view in range(6)
        ]
        numbers = [float(arrays[name][iteration]) for name in ("lr", "wd", "momentum")]
        before = bench.meter("loss")
        inputs = StepInputs.on_host((*numbers, 0.04, float(iteration >= 4)))
        bench.step(Views(torch.cat(views[:2]), torch.cat(views[2:])), inputs)
        losses.append(bench.meter("loss") - before)
        centers.append(bench.program.center[0].clone())
    return bench, losses, centers


def test_eight_steps_are_those_of_the_original(golden, draw, relative_error):
    arrays = golden("trajectory")
    bench, losses, centers = run_trajectory(arrays, draw)
    for iteration in range(8):
        assert losses[iteration] == pytest.approx(float(arrays["losses"][iteration]), rel=1e-5)
        assert relative_error(centers[iteration], arrays["centers"][iteration]) <= 1e-5
    for name, network in (("student", bench.student), ("teacher", bench.teacher)):
        state = network.state_dict()
        assert {f"{name}/{key}" for key in state} == {
            key for key in arrays if key.startswith(f"{name}/")
        }
        for key, tensor in state.items():
            # A key bias has no true gradient, so that Adam turns rounding into steps.
            limit = 1e-3 if key.endswith("attn.qkv.bias") else 1e-5
            assert relative_error(tensor, arrays[f"{name}/{key}"]) <= limit, f"{name}/{key}"
    assert bench.meter("steps") == 8
    assert bench.program.non_finite.tolist() == [0, 0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("local_views", [3, 0])
def test_sixteen_images_at_once_equal_four_times_four(optimizer, local_views, relative_error):
    benches = [build_bench(optimizer=optimizer, micro_batches=parts) for parts in (1, 4)]
    for step in range(3):
        for bench in benches:
            bench.step(draw_crops(step, local_views=local_views), INPUTS)
    whole, parts = benches
    for name in ("student", "teacher"):
        expected = getattr(whole, name).state_dict()
        for key, tensor in getattr(parts, name).state_dict().items():
            wanted = expected[key]
            if key.endswith("attn.qkv.bias"):  # as in the trajectory, the key's follows rounding
                tensor, wanted = (torch.cat(part.chunk(3)[::2]) for part in (tensor, wanted))
            assert relative_error(tensor, wanted) <= 1e-5, f"{name}.{key}"
    assert relative_error(parts.program.center, whole.program.center) <= 1e-5
    for meter in ("steps", "loss", "entropy", "centre_norm", "grad_norm"):
        assert parts.meter(meter) == pytest.approx(whole.meter(meter), rel=1e-4)


def drop_last_block(bench):
    """Let the only block of a bench drop half of its branches."""
    bench.student.backbone.blocks[-1].drop_path.rate = 0.5
    return bench


def test_each_micro_batch_gets_its_own_depth(relative_error):
    """Two images in two micro-batches of five views: the whole has view by view what the parts have
    image by image."""
    parts = torch.from_numpy(draw_depth((0.5,), 10, (3,))).reshape(2, 2, 5)
    together = parts.permute(1, 2, 0).reshape(1, 2, 10)
    benches = [drop_last_block(build_bench(micro_batches=count)) for count in (1, 2)]
    for bench, depth in zip(benches, (together, parts), strict=True):
        bench.step(draw_crops(0, images=2), INPUTS._replace(depth=depth))
    whole, parted = (bench.student.state_dict() for bench in benches)
    for key in whole.keys() - {"backbone.blocks.0.attn.qkv.bias"}:
        assert relative_error(parted[key], whole[key]) <= 1e-5, key
    other = drop_last_block(build_bench())
    other.step(draw_crops(0, images=2), INPUTS._replace(depth=2.0 - together))
    assert other.meter("loss") != benches[0].meter("loss")


@pytest.mark.parametrize("depth", [None, torch.ones(2, 2, 5)])
def test_the_inputs_of_a_step_go_to_the_device_in_one_piece(depth, monkeypatch):
    bench, placed = build_bench(micro_batches=2), []
    place = bench.step.device.to_device
    monkeypatch.setattr(
        bench.step.device, "to_device", lambda batch: placed.append(batch) or place(batch)
    )
    crops = draw_crops(0, images=2)
    bench.step(crops, INPUTS._replace(depth=depth))
    besides = [
        part for part in placed if part is not crops and not any(part is field for field in crops)
    ]
    assert [part.numel() for part in besides] == [5 if depth is None else 25]


def test_a_step_moves_student_teacher_center_and_meters():
    bench = build_bench(kind=GivenViews)
    before = bench.bits()
    bench.step(draw_views(0), INPUTS)
    moved = {name for name, value in bench.bits().items() if value != before[name]}
    assert {
        "student.head.last_layer.weight_v",
        "teacher.head.last_layer.weight_v",
        "centre",
        "meters",
    } <= moved
    assert "teacher.backbone.blocks.0.mlp.fc1.weight" in moved
    assert bench.meter("steps") == 1


def test_a_frozen_last_layer_stays_while_the_rest_moves():
    bench = build_bench(kind=GivenViews)
    before = bench.bits()
    for step in range(3):
        bench.step(
            draw_views(step), INPUTS._replace(train_last_layer=torch.zeros((), device="cpu"))
        )
    moved = {name for name, value in bench.bits().items() if value != before[name]}
    assert not [name for name in moved if "student.head.last_layer" in name]
    assert "student.head.mlp.0.weight" in moved
    for name, parameter in bench.student.named_parameters():
        if "last_layer" in name:
            assert not any(value.any() for value in bench.optimizer.state[parameter].values())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_on_bad_pixels_changes_nothing_but_the_counters(optimizer, bad):
    bench = build_bench(kind=GivenViews, optimizer=optimizer)
    bench.step(draw_views(0), INPUTS)
    before = bench.bits()
    views = draw_views(1)
    views.large[0, 0, 0, 0] = bad
    bench.step(views, INPUTS)
    assert bench.bits() == before
    assert bench.program.non_finite.tolist() == [1, 1]
    bench.step(draw_views(2), INPUTS)
    assert bench.bits() != before
    assert bench.program.non_finite.tolist() == [1, 0]
    assert bench.meter("steps") == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_step_with_a_bad_gradient_alone_changes_nothing_but_the_counters(bad):
    bench = build_bench(kind=GivenViews)
    bench.step(draw_views(0), INPUTS)
    before = bench.bits()
    hook = bench.student.head.mlp[0].weight.register_hook(lambda gradient: gradient * bad)
    bench.step(draw_views(1), INPUTS)
    assert bench.bits() == before
    assert bench.program.non_finite.tolist() == [1, 1]
    hook.remove()


def test_a_masked_step_leaves_the_statistics_of_batch_norm_alone():
    bench = build_bench(kind=GivenViews, use_bn=True)
    bench.step(draw_views(0), INPUTS)
    before = bench.bits()
    views = draw_views(1)
    views.large[0, 0, 0, 0] = math.nan
    bench.step(views, INPUTS)
    assert {name for name, value in bench.bits().items() if value != before[name]} == set()


def test_a_run_with_a_masked_step_equals_one_without_it():
    benches = [build_bench(kind=GivenViews) for _ in range(2)]
    for bench in benches:
        bench.step(draw_views(0), INPUTS)
    benches[0].step(Views(*(view * math.nan for view in draw_views(1))), INPUTS)
    for bench in benches:
        bench.step(draw_views(2), INPUTS)
    assert benches[0].bits() == benches[1].bits()


def test_one_bad_micro_batch_masks_the_whole_step():
    bench = build_bench(kind=GivenViews, micro_batches=2)
    before = bench.bits()
    views = draw_views(0, images=4)
    views.large[-1, 0, 0, 0] = math.nan
    bench.step(views, INPUTS)
    assert bench.bits() == before
    assert bench.program.non_finite.tolist() == [1, 1]


def scale_loss(bench, scale):
    """Let a bench's step scale its loss as fp16 needs it."""
    bench.step.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    return bench


def test_a_loss_scale_changes_no_bit_and_continues_where_it_was():
    plain, scaled = build_bench(kind=GivenViews), scale_loss(build_bench(kind=GivenViews), 1024.0)
    for step in range(4):
        for bench in (plain, scaled):
            bench.step(draw_views(step), INPUTS)
    assert scaled.bits() == plain.bits()
    state = scaled.step.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (2048.0, 1)
    other = scale_loss(build_bench(kind=GivenViews), 2.0)
    other.step.load_state_dict(copy.deepcopy(state))
    assert other.step.state_dict() == state


def test_under_a_loss_scale_an_overflown_gradient_is_masked_and_not_counted():
    bench = scale_loss(build_bench(kind=GivenViews), 4.0)
    before = bench.bits()
    bench.student.head.mlp[0].weight.register_hook(lambda gradient: gradient * math.inf)
    for step, counted in enumerate(([0, 0], [0, 0], [1, 1], [2, 2])):
        assert bench.step.scaler.get_scale() == 4.0 / 2**step
        bench.step(draw_views(1), INPUTS)
        assert bench.program.non_finite.tolist() == counted, (
            "at a scale of 1 there is nothing left to lower"
        )
    assert bench.bits() == before


def test_under_a_loss_scale_a_loss_that_is_not_finite_counts_at_once():
    bench = scale_loss(build_bench(kind=GivenViews), 1024.0)
    views = draw_views(0)
    views.large[0, 0, 0, 0] = math.nan
    bench.step(views, INPUTS)
    assert bench.program.non_finite.tolist() == [1, 1]


def test_counters_count_in_all_and_in_a_row_and_latch_at_the_limit():
    counters, seen = torch.zeros(2), []
    for finite in (0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 1, 1):
        counters = count_non_finite(counters, torch.tensor(float(finite)))
        seen.append(tuple(int(value) for value in counters))
    assert NON_FINITE_LIMIT == 5
    assert seen == [
        *((1, 1), (2, 2), (2, 0), (3, 1), (3, 0)),
        *((4, 1), (5, 2), (6, 3), (7, 4), (8, 5)),
        *((9, 5), (9, 5), (9, 5)),
    ]


def test_forward_and_backward_move_no_weight():
    """A step that updates by nothing leaves both networks as they are, and gives the same loss
    again."""
    bench, losses = build_bench(kind=GivenViews), []
    before = bench.bits()
    for _ in range(2):
        bench.program.center.zero_(), bench.program.meters.zero_()
        bench.step(draw_views(0), StepInputs.on_host((0.0, 0.04, 1.0, 0.04, 1.0)))
        losses.append(bench.meter("loss"))
    assert losses[0] == losses[1] > 0
    moved = {name for name, value in bench.bits().items() if value != before[name]}
    assert not [name for name in moved if name.startswith(("student", "teacher"))]


def test_phases_are_told_in_the_order_of_the_paper():
    bench, phases = build_bench(micro_batches=2), []
    bench.program.enter = phases.append
    bench.step(draw_crops(0, images=2), INPUTS)
    each = ["augmentation", "teacher", "student", "loss", "backward"]
    assert phases == [*each, *each, "update"]


def test_the_loss_is_that_of_the_views_in_their_order(relative_error):
    """Views ordered by view, then by image: teacher rows 0..B-1 are the first view of every
    image."""
    bench, crops = build_bench(), draw_crops(0, images=2)
    views = bench.program.augment(crops)
    assert [tuple(view.shape) for view in views] == [(4, 3, 16, 16), (6, 3, 8, 8)]
    for image in range(2):
        alone = Crops(*(field[image : image + 1] for field in crops))
        for group, single in zip(views, bench.program.augment(alone), strict=True):
            torch.testing.assert_close(group[image::2], single)


def test_without_local_crops_there_is_one_resolution():
    bench = build_bench()
    views = bench.program.augment(draw_crops(0, images=2, local_views=0))
    assert [tuple(view.shape) for view in views] == [(4, 3, 16, 16)]


def test_outputs_are_averaged_over_processes_before_they_are_used():
    bench, seen = build_bench(kind=GivenViews), []

    def average(tensor):
        seen.append(tensor.clone())
        return lambda: tensor / 2

    bench.program.average = average
    bench.step(draw_views(0), INPUTS)
    assert len(seen) == 1 and seen[0].shape == (PROTOTYPES + 4,)
    assert bench.meter("loss") == pytest.approx(float(seen[0][0]) / 2, rel=1e-6)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_the_exchange_begins_before_the_last_backward_pass_and_ends_after_it(micro_batches):
    bench, order = build_bench(kind=GivenViews, micro_batches=micro_batches), []

    def average(tensor):
        order.append("begin")
        return lambda: order.append("end") or tensor

    bench.program.average = average
    bench.student.head.last_layer.weight_v.register_post_accumulate_grad_hook(
        lambda _: order.append("backward")
    )
    bench.step(draw_views(0), INPUTS)
    assert order == ["backward"] * (micro_batches - 1) + ["begin", "backward", "end"]


def test_state_continues_to_the_bit():
    bench = build_bench(kind=GivenViews)
    bench.step(draw_views(0), INPUTS)
    other = Bench(copy.deepcopy(bench.student), copy.deepcopy(bench.teacher), kind=GivenViews)
    other.program.load_state_dict(copy.deepcopy(bench.program.state_dict()))
    other.optimizer.load_state_dict(copy.deepcopy(bench.optimizer.state_dict()))
    for each in (bench, other):
        each.step(draw_views(1), INPUTS)
    assert other.bits() == bench.bits()
    other.program.load_state_dict({"centre": torch.ones(1, PROTOTYPES)})
    assert torch.equal(other.program.center, torch.ones(1, PROTOTYPES))
    assert other.meter("steps") == 2
