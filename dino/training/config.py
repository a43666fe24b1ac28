"""What a pre-training run is asked."""

from __future__ import annotations

from dataclasses import dataclass

from dino.config import EpochConfig, RateConfig, ReportConfig, derived
from dino.data.config import CropConfig, DataConfig, TrainDataConfig
from dino.devices.config import DeviceConfig, IpuConfig, PrecisionConfig
from dino.models.config import BackboneConfig, ChannelConfig
from dino.runtime.config import LaunchConfig


@dataclass(frozen=True, kw_only=True)
class StudentConfig(ChannelConfig):
    """What the student's network has beyond the backbone's name."""

    drop_path_rate: float = 0.1
    out_dim: int = 65536
    norm_last_layer: bool = True
    use_bn_in_head: bool = False
    init_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """How the teacher follows the student and how sharp its targets are (paper, section 3.1)."""

    momentum_teacher: float = 0.996
    warmup_teacher_temp: float = 0.04
    teacher_temp: float = 0.04
    warmup_teacher_temp_epochs: int = 0


@dataclass(frozen=True, kw_only=True)
class OptimConfig(RateConfig):
    """The optimiser and its schedules, all per iteration."""

    optimizer: str = "adamw"
    eps: float = 1e-8
    warmup_epochs: int | None = derived(10)
    min_lr: float = 1e-6
    weight_decay: float = 0.04
    weight_decay_end: float = 0.4
    clip_grad: float | None = derived(3.0)
    freeze_last_layer: int = 1


@dataclass(frozen=True, kw_only=True)
class RunConfig(EpochConfig):
    """What pre-training asks besides: how large an update is, and how often to save and score."""

    accumulate_steps: int = 1
    recompute: str = "nothing"
    saveckp_freq: int = 20
    save_every_steps: int = 0
    keep_checkpoints: int = 0
    eval_knn_every: int = 0
    preset: str | None = None
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
    """What a device is compared with."""

    reference: str = "cpu"
    steps: int = 8
    tolerance: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class AlignConfig(TrainConfig):
    """Some steps of training on two devices, from the same weights and pixels.

    Small, and in float32 fit for comparison: where a gradient is 0 but for rounding (the keys' bias), a small eps would
    make a whole step of the rounding.
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
