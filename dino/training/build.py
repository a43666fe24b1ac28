"""Build the pieces of a run from its settings: networks, loader, program."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import NamedTuple, cast

from torch import nn

from dino.config import chosen
from dino.data.crops import CropRecipe
from dino.data.datasets import CropDataset, Share
from dino.data.image_source import ImageSource
from dino.data.loaders import TrainLoader, build_train_loader, choose_workers
from dino.data.photometric import Normalization, build_normalization
from dino.data.start_checks import check_count
from dino.data.synthetic import SyntheticLoader, make_batch
from dino.devices.base import Device, TrainStep
from dino.devices.config import IpuConfig
from dino.errors import OptionError
from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.registry import (
    build_backbone,
    expect_sizes,
    is_vit,
    set_attention,
    set_recompute,
    width_of,
)
from dino.runtime.agreement import check_images
from dino.runtime.context import Run
from dino.runtime.exchange import GradientExchange
from dino.training.chunks import choose_chunks
from dino.training.config import OptimConfig, TrainConfig
from dino.training.draws import StepDraws, draws_by_itself
from dino.training.ema import build_teacher
from dino.training.optim import OPTIMIZERS, MaskedOptimizer, build_optimizer
from dino.training.step import DinoProgram, last_layer

logger = logging.getLogger(__name__)


class StepParts(NamedTuple):
    """A training step and what it works on."""

    student: MultiCrop
    teacher: MultiCrop
    optimizer: MaskedOptimizer
    program: DinoProgram
    step: TrainStep
    draws: StepDraws


def build_step(config: TrainConfig, run: Run) -> StepParts:
    """Build the step of a run on its device, with networks, optimizer and random numbers.

    Raises:
        OptionError: The architecture does not accept the crops.
    """
    device, optim = run.device, config.optim
    student, teacher = build_networks(config, run)
    optimizer = build_optimizer(optim.optimizer, student, fused=device.fuses_updates, eps=optim.eps)
    program = build_program(config, student, teacher, run)
    micro_batches = device.count_micro_batches(config.run.accumulate_steps)
    step = device.compile_train(program, optimizer, micro_batches)
    draws = StepDraws(config, student, device, run.processes.rank)
    return StepParts(student, teacher, optimizer, program, step, draws)


def build_networks(config: TrainConfig, run: Run) -> tuple[MultiCrop, MultiCrop]:
    """Build student and teacher on the device; both start with the same weights."""
    run.device.seed(config.run.seed)
    student = build_network(
        config,
        drop_path_rate=float(chosen(config.student, "drop_path_rate")),
        norm_last_layer=config.student.norm_last_layer,
    )
    sizes = [config.crops.global_crops_size] + [config.crops.local_crops_size] * (
        config.crops.local_crops_number > 0
    )
    expect_sizes(student.backbone, sizes)
    set_recompute(student.backbone, choose_recompute(config, run.device))
    teacher = build_teacher(
        build_network(config, drop_path_rate=0.0, norm_last_layer=True), student
    )
    if run.device.attention is not None:
        for network in (student, teacher):
            set_attention(network.backbone, run.device.attention)
    device = run.device
    if run.processes.world_size > 1:
        student, teacher = (
            cast(MultiCrop, device.synchronize_batch_norm(network))
            for network in (student, teacher)
        )
    for network in (student, teacher):
        device.prepare_network(network.stages)
    return student.to(device.torch_device), teacher.to(device.torch_device)


def build_loader(
    config: TrainConfig, source: ImageSource, run: Run
) -> TrainLoader | SyntheticLoader:
    """Build the loader for this process's share of the crops.

    Raises:
        DataError: There are fewer images than one global batch needs.
        OptionError: The processes read different images.
    """
    processes, data = run.processes, config.data
    check_images(processes, source)
    batch_size = data.batch_size_per_device * run.device.count_micro_batches(
        config.run.accumulate_steps
    )
    recipe = build_recipe(config)
    if config.train_data.synthetic_data:
        check_count(source, batch_size * processes.world_size)
        batch = make_batch(
            recipe,
            batch_size,
            seed=config.run.seed,
            device=run.device.torch_device,
            to_device=run.device.to_device,
        )
        return SyntheticLoader(batch, len(source) // (batch_size * processes.world_size))
    skip_bad = config.train_data.on_bad_image == "skip"
    on_host = config.train_data.augment_on == "host"
    return build_train_loader(
        CropDataset(
            source.ranged(config.train_data.pixel_range),
            recipe,
            seed=config.run.seed,
            skip_bad=skip_bad,
            host_normalization=choose_normalization(config) if on_host else None,
        ),
        batch_size=batch_size,
        share=Share(rank=processes.rank, world_size=processes.world_size),
        workers=choose_workers(
            data.num_workers,
            processes_here=processes.local_world_size,
            reserved=run.device.reserved_cores,
        ),
        pin_memory=run.device.pins_memory,
        start=run.device.loader_start,
        piece=choose_piece(config.compiled, batch_size),
        processes_here=processes.local_world_size,
    )


def choose_normalization(config: TrainConfig) -> Normalization:
    """Return the run's mean and standard deviation: those of the settings, else ImageNet's."""
    pixels = config.train_data
    given = {"mean": pixels.mean, "std": pixels.std}
    numbers = {name: value for name, value in given.items() if isinstance(value, tuple)}
    return replace(build_normalization(config.student.chosen_in_chans), **numbers)


def build_recipe(config: TrainConfig) -> CropRecipe:
    """Return how many views an image has and how they are cropped."""
    crops = config.crops
    return CropRecipe(
        global_size=crops.global_crops_size,
        global_scale=crops.global_crops_scale,
        local_size=crops.local_crops_size,
        local_scale=crops.local_crops_scale,
        local_views=crops.local_crops_number,
        channels=config.student.chosen_in_chans,
    )


def choose_piece(config: IpuConfig, batch_size: int) -> int | None:
    """Return how many images a loader process passes on at a time; None for whole batches.

    Raises:
        OptionError: The number exceeds the batch.
    """
    if config.async_type != "rebatch":
        return None
    if config.rebatched_worker_size > batch_size:
        raise OptionError(
            f"`rebatched_worker_size` {config.rebatched_worker_size} is more than the {batch_size} "
            "images that a process takes at a time",
            value=config.rebatched_worker_size,
            remedy="lower it",
        )
    return config.rebatched_worker_size


def build_program(
    config: TrainConfig, student: MultiCrop, teacher: MultiCrop, run: Run
) -> DinoProgram:
    """Bind the networks to the step; exchange gradients and compile if needed."""
    logger.info("network: %s", describe_network(config, student))
    if run.device.replays:
        check_replay(config, student, run)
    forward_student: nn.Module = student
    forward_teacher: nn.Module = teacher
    exchange = None
    if run.processes.world_size > 1 and not run.device.exchanges_gradients:
        for network in (student, teacher):
            run.processes.copy_from_first([*network.parameters(), *network.buffers()])
        exchange = GradientExchange(
            student.parameters(), run.processes.all_reduce_mean_async, run.device.bucket_bytes
        )
    if run.device.compiles:
        forward_student = run.device.compile_module(student, in_parts=exchange is not None)
        if run.device.reads_freely:  # otherwise it is part of a compiled phase
            forward_teacher = run.device.compile_module(teacher)
    return DinoProgram(
        student=forward_student,
        teacher=forward_teacher,
        prototypes=config.student.out_dim,
        normalization=choose_normalization(config),
        clip_grad=choose_clipping(config.optim, run.device),
        average=run.processes.all_reduce_mean_async,
        exchange=exchange,
        compile_phase=run.device.compile_phase,
        loss_chunks=choose_chunks(last_layer(student).weight_v, run.device.temporary_bytes()),
    )


def describe_network(config: TrainConfig, student: MultiCrop) -> str:
    """What a run says about its network and the crops that it gets."""
    backbone, head = (
        sum(parameter.numel() for parameter in part.parameters()) / 1e6
        for part in (student.backbone, student.head)
    )
    moments = OPTIMIZERS[config.optim.optimizer].state_names
    size = 4 * (2 + len(moments)) * (backbone + head)  # student and teacher too, in float32
    name, crops = config.backbone.chosen_arch, config.crops
    patches = f" with patches of {config.backbone.chosen_patch_size}" if is_vit(name) else ""
    local = f", {crops.local_crops_number} local crops of {crops.local_crops_size}"
    return (
        f"{name}{patches}, {backbone:.3g} M parameters, and {head:.3g} M parameters in its head; "
        f"2 global crops of {crops.global_crops_size}{local if crops.local_crops_number else ''} "
        f"pixels; a checkpoint takes about {size:.3g} MB"
    )


def check_replay(config: TrainConfig, student: MultiCrop, run: Run) -> None:
    """Check that one recorded step can stand for all steps.

    Raises:
        OptionError: There are several processes, or the student draws random numbers itself.
    """
    if run.processes.world_size > 1:
        raise OptionError(
            f"`cuda_graph` is for one process, and this run has {run.processes.world_size}",
            remedy="leave it out",
        )
    if draws_by_itself(student.backbone, config):
        raise OptionError(
            f"`cuda_graph` does not work with `arch` {config.backbone.chosen_arch}, which draws "
            "random numbers in each step",
            remedy="leave it out, or use a vit_* or a network without dropout",
        )


def choose_recompute(config: TrainConfig, device: Device) -> str:
    """Return what the backward pass recomputes; `auto` is the device's choice for our ViTs."""
    chosen_word = config.run.recompute
    if chosen_word != "auto":
        return chosen_word
    return device.recompute if is_vit(config.backbone.chosen_arch) else "nothing"


def choose_clipping(optim: OptimConfig, device: Device) -> float:
    """Return the largest gradient norm; 0 disables clipping.

    An explicit `clip_grad` wins, then the reference's default if the device clips by default.
    """
    if optim.clip_grad is None and not device.clips_by_default:
        return 0.0
    return float(chosen(optim, "clip_grad"))


def build_network(
    config: TrainConfig, *, drop_path_rate: float, norm_last_layer: bool
) -> MultiCrop:
    """Build one network, untrained, on the host."""
    backbone = build_backbone(
        config.backbone.chosen_arch,
        patch_size=config.backbone.chosen_patch_size,
        in_chans=config.student.chosen_in_chans,
        img_size=config.crops.global_crops_size,
        drop_path_rate=drop_path_rate,
    )
    head = DINOHead(
        in_dim=width_of(backbone),
        out_dim=config.student.out_dim,
        use_bn=config.student.use_bn_in_head,
        norm_last_layer=norm_last_layer,
    )
    return MultiCrop(backbone, head)
