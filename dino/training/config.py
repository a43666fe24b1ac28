"""Settings of a pre-training run."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import EpochConfig, RateConfig, ReportConfig, derived, setting
from dino.data.config import CropConfig, DataConfig, TrainDataConfig
from dino.devices.config import DeviceConfig, IpuConfig, PrecisionConfig
from dino.models.config import BackboneConfig, ChannelConfig
from dino.runtime.config import LaunchConfig


@dataclass(frozen=True, kw_only=True)
class StudentConfig(ChannelConfig):
    """The student network: head, stochastic depth and initial weights."""

    drop_path_rate: float | None = derived(0.1, least=0, most=1)
    out_dim: int = setting(65536, least=2)
    norm_last_layer: bool = True
    use_bn_in_head: bool = False
    init_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How the teacher follows the student and how sharp its targets are (paper, section 3.1)."""

    momentum_teacher: float = setting(0.996, least=0, most=1)
    warmup_teacher_temp: float = setting(0.04, least=0.0001, most=100)
    teacher_temp: float = setting(0.04, least=0.0001, most=100)
    warmup_teacher_temp_epochs: int = setting(0, least=0)


@dataclass(frozen=True, kw_only=True)
class OptimConfig(RateConfig):
    """The optimizer and its schedules, all per iteration."""

    optimizer: str = setting("adamw", choices=("adamw", "sgd", "lars"))
    eps: float = setting(1e-8, least=0)
    warmup_epochs: int | None = derived(10, least=0)
    min_lr: float = setting(1e-6, least=0)
    weight_decay: float = setting(0.04, least=0)
    weight_decay_end: float = setting(0.4, least=0)
    clip_grad: float | None = derived(3.0, least=0)
    freeze_last_layer: int = setting(1, least=0)


@dataclass(frozen=True, kw_only=True)
class RunConfig(EpochConfig):
    """How large an update is, and how often to save and score."""

    accumulate_steps: int = setting(1, least=1)
    recompute: str = setting("auto", choices=("auto", "nothing", "activations", "mlp", "blocks"))
    saveckp_freq: int = setting(20, least=0)
    save_every_steps: int = setting(0, least=0)
    keep_checkpoints: int = setting(0, least=0)
    eval_knn_every: int = setting(0, least=0)
    own_view_images: int = setting(256, least=0)
    keep_best: str | None = setting(None, choices=("knn", "own_view"))
    draw_pictures: bool = True
    preset: str | None = setting(None, choices=("auto",))
    hours: float | None = setting(None, least=0, most=100_000)
    dry_run: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A pre-training run."""

    device: DeviceConfig = DeviceConfig()
    precision: PrecisionConfig = PrecisionConfig()
    compiled: IpuConfig = IpuConfig()
    launch: LaunchConfig = LaunchConfig()
    backbone: BackboneConfig = BackboneConfig()
    student: StudentConfig = StudentConfig()
    teacher: TeacherConfig = TeacherConfig()
    optim: OptimConfig = OptimConfig()
    crops: CropConfig = CropConfig()
    data: DataConfig = DataConfig()
    train_data: TrainDataConfig = TrainDataConfig()
    run: RunConfig = RunConfig()


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """The reference that a device is compared with, and how closely it must match."""

    reference: str = setting("cpu", choices=("hpu", "cuda", "cpu"))
    steps: int = setting(8, least=2)
    tolerance: float = setting(1e-5, least=0)


@dataclass(frozen=True, kw_only=True)
class AlignConfig(TrainConfig):
    """A few training steps on two devices, from the same weights and pixels.

    The defaults make a small run that can be compared in float32. `eps` is large because some
    gradients are 0 except for rounding (the keys' bias): a small `eps` would turn that rounding
    into a full step.
    """

    backbone: BackboneConfig = BackboneConfig(arch="vit_mini")
    student: StudentConfig = StudentConfig(out_dim=1024, drop_path_rate=0.0)
    teacher: TeacherConfig = TeacherConfig(momentum_teacher=0.9)
    optim: OptimConfig = OptimConfig(warmup_epochs=0, lr=0.02, clip_grad=0.0, eps=1e-5)
    crops: CropConfig = CropConfig(local_crops_number=2)
    data: DataConfig = DataConfig(batch_size_per_device=1)
    run: RunConfig = RunConfig(epochs=2)
    align: ComparisonConfig = ComparisonConfig()
    report: ReportConfig = ReportConfig()
